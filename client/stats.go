package client

import (
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxInFlight bounds the reports that are sent and not acked. The service acks
// each report at once, so that more of them wait only if it is stuck; then
// reports merge into one.
const maxInFlight = 16

// The reasons of refusals by the client itself, as the service words its own.
const (
	reasonNotUTF8       = "invalid_utf8"
	reasonMessageSize   = "message_size"
	reasonNegativeDelta = "negative_delta"
)

// deltas are the counts of reports that add up when the reports are merged.
type deltas struct {
	rxPackets, rxBytes, txPackets, txBytes int64
	// reports is how many reports these are of.
	reports int64
}

func (d *deltas) add(e deltas) {
	d.rxPackets = addSaturated(d.rxPackets, e.rxPackets)
	d.rxBytes = addSaturated(d.rxBytes, e.rxBytes)
	d.txPackets = addSaturated(d.txPackets, e.txPackets)
	d.txBytes = addSaturated(d.txBytes, e.txBytes)
	d.reports += e.reports
}

// addSaturated adds two numbers that are not negative.
func addSaturated(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// sentReport is a report that the service has not acked.
type sentReport struct {
	sequence int64
	deltas   deltas
	at       time.Time
}

// statsQueue has the newest report, and the deltas of all that were not acked.
type statsQueue struct {
	// newest was handed over last; nil once all reports are acked.
	newest *agentstatsv1.Stats
	// carry are the deltas for the next report, its own included.
	carry deltas
	// unsent is true if newest is to be sent.
	unsent   bool
	inFlight []sentReport
}

// put takes in a report, in the place of one that was not sent yet. It returns
// what it refused, with reasons, and keeps stats.
func (q *statsQueue) put(stats *agentstatsv1.Stats) []*agentstatsv1.Refusal {
	refusals := cleanStats(stats)
	q.newest = stats
	q.unsent = true
	q.carry.add(deltas{
		rxPackets: stats.GetRxPackets(),
		rxBytes:   stats.GetRxBytes(),
		txPackets: stats.GetTxPackets(),
		txBytes:   stats.GetTxBytes(),
		reports:   1,
	})
	return refusals
}

// ready reports whether next has a report.
func (q *statsQueue) ready() bool {
	return q.unsent && len(q.inFlight) < maxInFlight
}

// next takes the next report, which must be ready, to be sent with the given
// sequence.
func (q *statsQueue) next(sequence int64, now time.Time) *agentstatsv1.Stats {
	q.newest.RxPackets = q.carry.rxPackets
	q.newest.RxBytes = q.carry.rxBytes
	q.newest.TxPackets = q.carry.txPackets
	q.newest.TxBytes = q.carry.txBytes
	q.inFlight = append(q.inFlight, sentReport{sequence: sequence, deltas: q.carry, at: now})
	q.carry = deltas{}
	q.unsent = false
	return q.newest
}

// received removes what the service has taken in, up to a sequence. It returns
// how many reports these were and when the newest of them was sent.
func (q *statsQueue) received(sequence int64) (reports int64, sent time.Time) {
	n := 0
	for n < len(q.inFlight) && q.inFlight[n].sequence <= sequence {
		reports += q.inFlight[n].deltas.reports
		sent = q.inFlight[n].at
		n++
	}
	q.inFlight = append(q.inFlight[:0], q.inFlight[n:]...)
	if q.idle() {
		q.newest = nil
	}
	return reports, sent
}

// resume carries over what the service has not received: the newest report is
// to be sent again, with the deltas of all.
func (q *statsQueue) resume() {
	for _, r := range q.inFlight {
		q.carry.add(r.deltas)
	}
	q.inFlight = q.inFlight[:0]
	q.unsent = q.carry.reports > 0
}

func (q *statsQueue) idle() bool {
	return q.carry.reports == 0 && len(q.inFlight) == 0
}

// cleanStats removes from a report what would make it unsendable, or would be
// refused and spoil the sum of merged reports.
func cleanStats(stats *agentstatsv1.Stats) (refusals []*agentstatsv1.Refusal) {
	negative := ownRefusal(reasonNegativeDelta, "a count since the last report is negative")
	for _, delta := range []struct {
		name  string
		value *int64
	}{
		{"rx_packets", &stats.RxPackets},
		{"rx_bytes", &stats.RxBytes},
		{"tx_packets", &stats.TxPackets},
		{"tx_bytes", &stats.TxBytes},
	} {
		if *delta.value < 0 {
			*delta.value = 0
			refuseName(negative, delta.name)
		}
	}

	notUTF8 := ownRefusal(reasonNotUTF8, "a text is not UTF-8")
	var kept []*agentstatsv1.Stats_Metric
	for i, m := range stats.GetMetrics() {
		ok := validMetric(m)
		if !ok {
			if kept == nil {
				kept = append(make([]*agentstatsv1.Stats_Metric, 0, len(stats.GetMetrics())), stats.GetMetrics()[:i]...)
			}
			refuseName(notUTF8, cleanText(m.GetName()))
		} else if kept != nil {
			kept = append(kept, m)
		}
	}
	if kept != nil {
		stats.Metrics = kept
	}
	for _, counts := range []map[string]int64{stats.GetConnectionsByProto(), stats.GetSessionCounts()} {
		for name := range counts {
			if !utf8.ValidString(name) {
				delete(counts, name)
				refuseName(notUTF8, cleanText(name))
			}
		}
	}

	for _, r := range []*agentstatsv1.Refusal{negative, notUTF8} {
		if r.GetCount() > 0 {
			refusals = append(refusals, r)
		}
	}
	return refusals
}

func validMetric(m *agentstatsv1.Stats_Metric) bool {
	if !utf8.ValidString(m.GetName()) {
		return false
	}
	for _, l := range m.GetLabels() {
		if !utf8.ValidString(l.GetName()) || !utf8.ValidString(l.GetValue()) {
			return false
		}
	}
	return true
}

// fitRequest drops samples from the end of a request's report until the request
// fits into limit bytes. A larger one would end the stream each time it is sent. It
// returns nil if the request fits.
func fitRequest(req *agentstatsv1.ConnectRequest, limit int64) *agentstatsv1.Refusal {
	// Lengths are encoded in at most 5 bytes each; two of them shrink here.
	excess := int64(proto.Size(req)) - limit
	if excess <= 0 {
		return nil
	}
	refusal := ownRefusal(reasonMessageSize, "the report is larger than the service accepts")
	stats := req.GetStats()
	n := len(stats.GetMetrics())
	for n > 0 && excess > 0 {
		n--
		// The tag and the length beside the sample itself are left out of the
		// sum, so that at worst a sample too many is dropped.
		excess -= int64(proto.Size(stats.GetMetrics()[n]))
		refuseName(refusal, stats.GetMetrics()[n].GetName())
	}
	stats.Metrics = stats.GetMetrics()[:n:n]
	if excess > 0 {
		stats.ConnectionsByProto, stats.SessionCounts = nil, nil
		refuseName(refusal, "connections_by_proto")
		refuseName(refusal, "session_counts")
	}
	return refusal
}

// ownRefusal begins a refusal by the client itself.
func ownRefusal(reason, message string) *agentstatsv1.Refusal {
	code := agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID
	if reason == reasonMessageSize {
		code = agentstatsv1.RefusalCode_REFUSAL_CODE_LIMIT
	}
	return &agentstatsv1.Refusal{Code: code, Reason: reason, Message: message}
}

func refuseName(r *agentstatsv1.Refusal, name string) {
	r.Count++
	if len(r.GetNames()) < 16 {
		r.Names = append(r.Names, name)
	}
}
