package outbox

import (
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxInFlight bounds the reports with counts that are sent and not acked. The service
// keeps as many of an agent until they are written. At a report each 30 s they bridge 8
// minutes without a database. Beyond that counts stay in the client and merge.
const maxInFlight = 16

// maxKeptSessions bounds the names of session counts that are kept of a report. The
// service reads as many.
const maxKeptSessions = 64

// maxConnections is the highest connection count that the contract allows, maxDelta the
// highest count since the last report.
const (
	maxConnections = 1 << 30
	maxDelta       = 1 << 50
)

// ReasonMessageSize is the reason of what is larger than the service accepts.
const ReasonMessageSize = "message_size"

// The other reasons of refusals by the client itself, as the service words its own.
const (
	reasonNotUTF8       = "invalid_utf8"
	reasonNegativeDelta = "negative_delta"
	reasonInvalidStats  = "invalid_stats"
)

// deltas are the counts of reports that add up when the reports are merged, each up to
// maxDelta: the service would refuse more as a whole.
type deltas struct {
	rxPackets, rxBytes, txPackets, txBytes int64
	// reports is the number of reports that are added up.
	reports int64
}

func (d *deltas) add(e deltas) {
	d.rxPackets = min(d.rxPackets+e.rxPackets, maxDelta)
	d.rxBytes = min(d.rxBytes+e.rxBytes, maxDelta)
	d.txPackets = min(d.txPackets+e.txPackets, maxDelta)
	d.txBytes = min(d.txBytes+e.txBytes, maxDelta)
	d.reports += e.reports
}

// put sets the counts of a report.
func (d *deltas) put(stats *agentstatsv1.Stats) {
	stats.RxPackets, stats.RxBytes = d.rxPackets, d.rxBytes
	stats.TxPackets, stats.TxBytes = d.txPackets, d.txBytes
}

// sentReport is the part of a report that is kept until it is acked: its counts, and
// whether the workspace was in use.
type sentReport struct {
	sequence int64
	deltas   deltas
	at       time.Time // when it was sent last
	// handedOver is when its newest counts were.
	handedOver time.Time

	connections int64
	// sessions by app; nil: there are none, or the older fields have them.
	sessions                          map[string]int64
	vscode, jetbrains, terminals, ssh int64
}

// newSentReport returns what is kept of stats, without a reference to it.
func newSentReport(sequence int64, d deltas, now time.Time, stats *agentstatsv1.Stats) sentReport {
	r := sentReport{
		sequence: sequence, deltas: d, at: now,
		connections: stats.GetConnectionCount(),
		vscode:      stats.GetSessionCountVscode(),
		jetbrains:   stats.GetSessionCountJetbrains(),
		terminals:   stats.GetSessionCountReconnectingPty(),
		ssh:         stats.GetSessionCountSsh(),
	}
	for app, n := range stats.GetSessionCounts() {
		if n <= 0 || len(r.sessions) == maxKeptSessions {
			continue
		}
		if r.sessions == nil {
			r.sessions = make(map[string]int64)
		}
		r.sessions[app] = n
	}
	return r
}

// superseded returns the report as it is sent again if a newer one follows.
func (r *sentReport) superseded() *agentstatsv1.Stats {
	stats := &agentstatsv1.Stats{
		ConnectionCount: r.connections, SessionCounts: r.sessions,
		SessionCountVscode: r.vscode, SessionCountJetbrains: r.jetbrains,
		SessionCountReconnectingPty: r.terminals, SessionCountSsh: r.ssh,
	}
	r.deltas.put(stats)
	return stats
}

// statsQueue has the newest report, and the counts of all that were not acked. A sent
// report keeps its sequence and its counts until it is acked, and is sent again with
// both. So the service knows whether it has the counts already. Counts that were never
// sent merge.
type statsQueue struct {
	// newest was handed over last; nil once all reports are acked.
	newest     *agentstatsv1.Stats
	handedOver time.Time // when newest was
	// newestSequence is that of the request that carried newest with its counts; 0:
	// none did.
	newestSequence int64
	// carry are the counts that were never sent, newest's included.
	carry deltas
	// connections is the highest connection count of the reports that merged into
	// newest since the last one was sent.
	connections int64
	// unsent is true if newest is to be sent.
	unsent bool
	// inFlight are sent and not acked, in the order of their sequences. Those from
	// resending on are to be sent again in this session.
	inFlight  []sentReport
	resending int
}

// put adds a report, which replaces one that was not sent yet. It returns what it
// refused. It owns stats from then on.
func (q *statsQueue) put(stats *agentstatsv1.Stats) []*agentstatsv1.Refusal {
	refusals := cleanStats(stats)
	if q.unsent && q.connections <= maxConnections {
		// Connections since the last report that was sent.
		stats.ConnectionCount = max(stats.GetConnectionCount(), q.connections)
	}
	q.newest, q.newestSequence, q.unsent = stats, 0, true
	q.connections = stats.GetConnectionCount()
	q.carry.add(deltas{
		rxPackets: stats.GetRxPackets(),
		rxBytes:   stats.GetRxBytes(),
		txPackets: stats.GetTxPackets(),
		txBytes:   stats.GetTxBytes(),
		reports:   1,
	})
	return refusals
}

// owed reports whether newest was sent without counts that can be sent now.
func (q *statsQueue) owed() bool {
	return !q.unsent && q.carry.reports > 0 && len(q.inFlight) < maxInFlight
}

// next returns the newest report, which is unsent or owed, for the request with the
// sequence. While there are too many in flight its counts are 0, and stay in the queue.
func (q *statsQueue) next(sequence int64, now time.Time) *agentstatsv1.Stats {
	q.unsent = false
	if len(q.inFlight) >= maxInFlight {
		(&deltas{}).put(q.newest)
		return q.newest
	}
	q.carry.put(q.newest)
	sent := newSentReport(sequence, q.carry, now, q.newest)
	sent.handedOver = q.handedOver
	q.inFlight = append(q.inFlight, sent)
	q.resending = len(q.inFlight)
	q.newestSequence = sequence
	q.carry = deltas{}
	return q.newest
}

// nextResent returns the next report that is to be sent again, with its sequence; nil:
// there is none. It is superseded if a newer one follows.
func (q *statsQueue) nextResent(now time.Time) (req *agentstatsv1.ConnectRequest, handedOver time.Time) {
	if q.resending >= len(q.inFlight) {
		return nil, time.Time{}
	}
	r := &q.inFlight[q.resending]
	q.resending++
	r.at = now
	if r.sequence != q.newestSequence {
		return &agentstatsv1.ConnectRequest{Sequence: r.sequence, Stats: r.superseded(), StatsSuperseded: true}, r.handedOver
	}
	r.deltas.put(q.newest)
	return &agentstatsv1.ConnectRequest{Sequence: r.sequence, Stats: q.newest}, q.handedOver
}

// addStatsAge adds the age of a relay's report.
func (o *Outbox) addStatsAge(req *agentstatsv1.ConnectRequest, handedOver, now time.Time) {
	if o.IsRelay {
		req.StatsAge = now.Sub(handedOver).Microseconds()
	}
}

// received removes the reports up to the sequence, which the service has received. It
// returns their number, and when the newest of them was sent.
func (q *statsQueue) received(sequence int64) (reports int64, sent time.Time) {
	n := 0
	for n < len(q.inFlight) && q.inFlight[n].sequence <= sequence {
		reports += q.inFlight[n].deltas.reports
		sent = q.inFlight[n].at
		n++
	}
	q.inFlight = slices.Delete(q.inFlight, 0, n)
	q.resending = max(0, q.resending-n)
	if q.idle() {
		q.newest, q.newestSequence = nil, 0
	}
	return reports, sent
}

// resume begins a session, which sends all reports again that are not acked.
func (q *statsQueue) resume() {
	q.resending = 0
	// newest was never sent, or without its counts.
	if q.carry.reports > 0 {
		q.unsent = true
	}
}

func (q *statsQueue) idle() bool {
	return q.carry.reports == 0 && len(q.inFlight) == 0
}

// cleanStats removes what cannot be encoded, and counts that are negative or too high, which
// would spoil the sum of merged reports. It returns these as refusals.
func cleanStats(stats *agentstatsv1.Stats) (refusals []*agentstatsv1.Refusal) {
	negative := ownRefusal(reasonNegativeDelta, "a count since the last report is negative")
	tooHigh := ownRefusal(reasonInvalidStats, "a count since the last report is above 2^50")
	for _, delta := range []struct {
		name  string
		value *int64
	}{
		{"rx_packets", &stats.RxPackets},
		{"rx_bytes", &stats.RxBytes},
		{"tx_packets", &stats.TxPackets},
		{"tx_bytes", &stats.TxBytes},
	} {
		switch {
		case *delta.value < 0:
			*delta.value = 0
			refuseName(negative, delta.name)
		case *delta.value > maxDelta:
			*delta.value = 0
			refuseName(tooHigh, delta.name)
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

	for _, r := range []*agentstatsv1.Refusal{negative, tooHigh, notUTF8} {
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
	refusal := ownRefusal(ReasonMessageSize, "the report is larger than the service accepts")
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

// ownRefusal returns a refusal by the client itself, without names.
func ownRefusal(reason, message string) *agentstatsv1.Refusal {
	code := agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID
	if reason == ReasonMessageSize {
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
