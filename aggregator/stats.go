package aggregator

import (
	"fmt"
	"math"

	"github.com/coder/agentstatsd/agent"
)

// The stats gauges of an agent, in the order of agentSeries.gauges.
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

// ingestStats ingests the scalar values of a report. A refused value counts as not
// reported.
func (in *ingester) ingestStats() {
	s := in.report.Stats()
	in.ingestBytes(&s)
	in.ingestSessions(&s.Apps)
	in.ingestConnections(&s)
	in.ingestSessionCounts(&s.Sessions)
}

// ingestConnections ingests their number and latency, of which the one is the other's
// weight in groups.
func (in *ingester) ingestConnections(s *agent.Stats) {
	connections, ok := in.checkedField("connection_count", s.ConnectionCount, agent.MaxReportedCount)
	in.setGauge(gaugeConnections, connections, ok)
	latency := s.MedianLatencyMS / 1000
	if math.IsNaN(latency) || s.MedianLatencyMS > agent.MaxLatencyMS {
		in.refuse(reasonInvalidStats, "connection_median_latency_ms", func() string {
			return fmt.Sprintf("connection_median_latency_ms of %v is not a number up to %d", s.MedianLatencyMS, agent.MaxLatencyMS)
		})
		latency = 0
	}
	if g := &in.agent.gauges[gaugeLatency]; g.contributor != nil && latency > 0 {
		g.contributor.setWeight(connections)
	}
	created := in.setGauge(gaugeLatency, latency, latency > 0)
	if created && in.agg.grouped {
		in.agent.gauges[gaugeLatency].contributor.setWeight(connections)
	}
}

// ingestSessionCounts ingests the open sessions by family of app.
func (in *ingester) ingestSessionCounts(s *agent.Sessions) {
	for _, c := range [...]struct {
		gauge int
		field string
		count int64
	}{
		{gaugeVSCode, "session_count_vscode", s.VSCode},
		{gaugeJetBrains, "session_count_jetbrains", s.JetBrains},
		{gaugeReconnectingPTY, "session_count_reconnecting_pty", s.ReconnectingPTY},
		{gaugeSSH, "session_count_ssh", s.SSH},
	} {
		v, ok := in.checkedField(c.field, c.count, agent.MaxReportedCount)
		in.setGauge(c.gauge, v, ok)
	}
}

// ingestBytes adds the bytes of a report to those of the trailing window.
func (in *ingester) ingestBytes(s *agent.Stats) {
	rx, _ := in.checkedField("rx_bytes", s.RxBytes, agent.MaxReportedBytes)
	tx, _ := in.checkedField("tx_bytes", s.TxBytes, agent.MaxReportedBytes)
	rxSum, txSum := in.agent.bytesMoved.add(in.now, in.agg.window(), int64(rx), int64(tx))
	in.setGauge(gaugeRxBytes, float64(rxSum), true)
	in.setGauge(gaugeTxBytes, float64(txSum), true)
}

// checkedField returns a field's value; 0 and false if it is refused.
func (in *ingester) checkedField(field string, v, limit int64) (float64, bool) {
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

// setGauge sets one stats gauge, or drops it if there is no value. It reports
// whether it created the series.
func (in *ingester) setGauge(i int, v float64, present bool) bool {
	g := &in.agent.gauges[i]
	switch {
	case g.desc != nil && present:
		if o := g.set(v); o != included {
			in.omitted[o]++
		}
	case g.desc != nil:
		in.agg.drop(in.agent, g)
	case present:
		d := in.agg.stats[i]
		d.refs.Add(1)
		in.agg.series.Add(1)
		*g, in.prefix, _ = in.agg.create(in.agent, d, agent.Gauge, v, in.prefix)
		g.set(v)
		return true
	}
	return false
}

// maxBuckets bounds a window's memory. Reports that come closer together share a
// bucket. So each leaves a window of 1 min up to half a second early.
const maxBuckets = 128

// window sums bytes over a trailing time.
type window struct {
	buckets []bucket
}

// bucket has the bytes of reports at a time, or shortly after.
type bucket struct {
	at     int64
	rx, tx int64
}

// add adds a report of time now, and returns the sums over (now-width, now]. A sum
// beyond the largest value is that value. now does not fall from call to call.
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
