package aggregator

import (
	"fmt"
	"math"

	"github.com/coder/agentstatsd/agent"
)

// The stats gauges of an agent, in the order of source.gauges.
const (
	gaugeRxBytes = iota
	gaugeTxBytes
	gaugeConnections
	gaugeLatency
	gaugeVSCode
	gaugeJetBrains
	gaugeReconnectingPTY
	gaugeSSH

	statsGauges
)

var statsNames = [statsGauges]string{
	gaugeRxBytes:         "coderd_agentstats_rx_bytes",
	gaugeTxBytes:         "coderd_agentstats_tx_bytes",
	gaugeConnections:     "coderd_agentstats_connection_count",
	gaugeLatency:         "coderd_agentstats_connection_median_latency_seconds",
	gaugeVSCode:          "coderd_agentstats_session_count_vscode",
	gaugeJetBrains:       "coderd_agentstats_session_count_jetbrains",
	gaugeReconnectingPTY: "coderd_agentstats_session_count_reconnecting_pty",
	gaugeSSH:             "coderd_agentstats_session_count_ssh",
}

// stats takes in the scalar values of a report. What it refuses counts as not
// reported.
func (in *intake) stats(s agent.Stats) {
	rx, _ := in.checked("rx_bytes", s.RxBytes, agent.MaxReportedBytes)
	tx, _ := in.checked("tx_bytes", s.TxBytes, agent.MaxReportedBytes)
	rxSum, txSum := in.src.moved.add(in.now, in.agg.window, int64(rx), int64(tx))
	in.gauge(gaugeRxBytes, float64(rxSum), true)
	in.gauge(gaugeTxBytes, float64(txSum), true)

	in.sessions(&s.Apps)

	connections, ok := in.checked("connection_count", s.ConnectionCount, agent.MaxReportedCount)
	in.gauge(gaugeConnections, connections, ok)
	latency := s.MedianLatencyMS / 1000
	if math.IsNaN(latency) || s.MedianLatencyMS > agent.MaxLatencyMS {
		in.refuse(reasonInvalidStats, "connection_median_latency_ms", func() string {
			return fmt.Sprintf("connection_median_latency_ms of %v is not a number up to %d", s.MedianLatencyMS, agent.MaxLatencyMS)
		})
		latency = 0
	}
	if g := &in.src.gauges[gaugeLatency]; g.member != nil && latency > 0 {
		g.member.setWeight(connections)
	}
	created := in.gauge(gaugeLatency, latency, latency > 0)
	if created && in.agg.grouped {
		in.src.gauges[gaugeLatency].member.setWeight(connections)
	}
	for _, c := range [...]struct {
		gauge int
		field string
		count int64
	}{
		{gaugeVSCode, "session_count_vscode", s.Sessions.VSCode},
		{gaugeJetBrains, "session_count_jetbrains", s.Sessions.JetBrains},
		{gaugeReconnectingPTY, "session_count_reconnecting_pty", s.Sessions.ReconnectingPTY},
		{gaugeSSH, "session_count_ssh", s.Sessions.SSH},
	} {
		v, ok := in.checked(c.field, c.count, agent.MaxReportedCount)
		in.gauge(c.gauge, v, ok)
	}
}

// checked returns a field's value; 0 and false if it is refused.
func (in *intake) checked(field string, v, limit int64) (float64, bool) {
	if v >= 0 && v <= limit {
		return float64(v), true
	}
	in.refuse(reasonInvalidStats, field, func() string {
		if v < 0 {
			return fmt.Sprintf("%s of %d is negative", field, v)
		}
		return fmt.Sprintf("%s of %d exceeds %d", field, v, limit)
	})
	return 0, false
}

// gauge sets one stats gauge, or takes it away if there is no value. It reports
// whether it made the series.
func (in *intake) gauge(i int, v float64, present bool) bool {
	g := &in.src.gauges[i]
	switch {
	case g.desc != nil && present:
		if o := g.set(v); o != included {
			in.omitted[o]++
		}
	case g.desc != nil:
		in.agg.drop(in.src, g)
	case present:
		d := in.agg.stats[i]
		d.refs.Add(1)
		in.agg.series.Add(1)
		*g, in.prefix, _ = in.agg.create(in.src, d, agent.Gauge, v, in.prefix)
		g.set(v)
		return true
	}
	return false
}

// maxBuckets bounds a window's memory. Reports that come more often than this
// many in a window are put together, so that each leaves it up to half a second
// early when the window is 1 min long.
const maxBuckets = 128

// window sums bytes over a trailing time.
type window struct {
	buckets []bucket
}

// bucket has the bytes that were reported at a time, or shortly after.
type bucket struct {
	at     int64
	rx, tx int64
}

// add takes in a report of time now, and returns the sums over (now-width, now],
// or the largest value where they exceed that.
// now does not fall from call to call.
func (w *window) add(now, width, rx, tx int64) (rxSum, txSum int64) {
	left := 0
	for left < len(w.buckets) && w.buckets[left].at <= now-width {
		left++
	}
	if left > 0 {
		w.buckets = append(w.buckets[:0], w.buckets[left:]...)
	}
	if n := len(w.buckets); n > 0 && now-w.buckets[n-1].at < width/maxBuckets {
		last := &w.buckets[n-1]
		last.rx, last.tx = saturatingAdd(last.rx, rx), saturatingAdd(last.tx, tx)
	} else {
		w.buckets = append(w.buckets, bucket{at: now, rx: rx, tx: tx})
	}
	for _, b := range w.buckets {
		rxSum, txSum = saturatingAdd(rxSum, b.rx), saturatingAdd(txSum, b.tx)
	}
	return rxSum, txSum
}

// saturatingAdd returns a + b, or the largest value if that is larger. Neither
// is negative.
func saturatingAdd(a, b int64) int64 {
	if sum := a + b; sum >= a {
		return sum
	}
	return math.MaxInt64
}
