package wire

import (
	"sync"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// MessageReport implements agent.Report over the generated message. It is valid
// until its release.
type MessageReport struct {
	message *agentstatsv1.Stats
	stats   agent.Stats
	// Overflow is the number of session names beyond those that are read.
	Overflow int
	sample   agent.Sample
	labels   []agent.Label
}

// messageReports are reused, so that an idle stream has none.
var messageReports = sync.Pool{New: func() any { return new(MessageReport) }}

// NewMessageReport returns the report of a message. The caller releases it.
func NewMessageReport(message *agentstatsv1.Stats) *MessageReport {
	r, _ := messageReports.Get().(*MessageReport)
	r.message = message
	r.stats = agent.Stats{
		RxBytes:         message.GetRxBytes(),
		TxBytes:         message.GetTxBytes(),
		RxPackets:       message.GetRxPackets(),
		TxPackets:       message.GetTxPackets(),
		ConnectionCount: message.GetConnectionCount(),
		MedianLatencyMS: message.GetConnectionMedianLatencyMs(),
	}
	apps, overflow := agent.AppsOf(message.GetSessionCounts())
	r.Overflow = overflow
	r.stats.Sessions, r.stats.Apps = agent.CountSessions(apps, agent.Sessions{
		VSCode:          message.GetSessionCountVscode(),
		JetBrains:       message.GetSessionCountJetbrains(),
		ReconnectingPTY: message.GetSessionCountReconnectingPty(),
		SSH:             message.GetSessionCountSsh(),
	})
	return r
}

// Release makes the report reusable. It retains no string of the message.
func (r *MessageReport) Release() {
	clear(r.labels[:cap(r.labels)])
	*r = MessageReport{labels: r.labels[:0]}
	messageReports.Put(r)
}

// Stats implements agent.Report.
func (r *MessageReport) Stats() agent.Stats { return r.stats }

// Len implements agent.Report.
func (r *MessageReport) Len() int { return len(r.message.GetMetrics()) }

// Match implements agent.Report: a decoded sample has no encoding.
func (r *MessageReport) Match(int, *agent.SampleEncoding) (float64, bool) { return 0, false }

// Encoding implements agent.Report.
func (r *MessageReport) Encoding(int) agent.SampleEncoding { return agent.SampleEncoding{} }

// Sample implements agent.Report.
func (r *MessageReport) Sample(i int) *agent.Sample {
	m := r.message.GetMetrics()[i]
	r.labels = r.labels[:0]
	for _, l := range m.GetLabels() {
		r.labels = append(r.labels, agent.Label{Name: l.GetName(), Value: l.GetValue()})
	}
	r.sample = agent.Sample{Name: m.GetName(), Type: sampleType(m.GetType()), Value: m.GetValue(), Labels: r.labels}
	return &r.sample
}

// sampleType returns the sample's type; UnknownType: it is not in the contract.
func sampleType(t agentstatsv1.Stats_Metric_Type) agent.SampleType {
	switch t {
	case agentstatsv1.Stats_Metric_TYPE_UNSPECIFIED:
		return agent.Untyped
	case agentstatsv1.Stats_Metric_TYPE_COUNTER:
		return agent.Counter
	case agentstatsv1.Stats_Metric_TYPE_GAUGE:
		return agent.Gauge
	}
	return agent.UnknownType
}
