// Package load makes the load of all subjects of a comparison: series of simulated
// agents. They come as reports to the aggregator, as encoded bytes, or one by one.
package load

import (
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/coder/agentstatsd/agent"
)

// The series of one agent: eight gauges that the service computes of the scalar values
// of a report, and the samples that the agent forwards. With them 100 agents have 4,000
// series in 40 families. A forwarded series has six labels, a gauge three; the mean is
// 5.4, and lines are some 196 bytes long.
const (
	Gauges    = 8
	Forwarded = 32
	PerAgent  = Gauges + Forwarded
)

// Agents returns how many agents have that many series.
func Agents(series int) int { return series / PerAgent }

// ID of agent n.
func ID(n int) agent.ID {
	id := agent.ID{0: 0xbe}
	binary.BigEndian.PutUint64(id[8:], uint64(n)+1)
	return id
}

// Identity of agent n: the labels of its series.
func Identity(n int) agent.Identity {
	return agent.Identity{
		Username:      fmt.Sprintf("developer-%05d", n),
		WorkspaceName: fmt.Sprintf("workspace-%05d-main", n),
		AgentName:     "main",
		TemplateName:  "kubernetes-dev",
	}
}

// Report is a report of an agent. It implements agent.Report without allocating
// when it is read, and with samples that have encodings, as the service's own reader
// of the wire does.
type Report struct {
	n         int
	stats     agent.Stats
	samples   []agent.Sample
	encodings []agent.SampleEncoding
	current   agent.Sample
}

// NewReport returns the report of agent n in round 0, with that many forwarded
// samples of two labels each.
func NewReport(n, samples int) *Report {
	r := &Report{n: n, samples: make([]agent.Sample, samples), encodings: make([]agent.SampleEncoding, samples)}
	for i := range r.samples {
		s := &r.samples[i]
		s.Labels = []agent.Label{
			{Name: "path", Value: [...]string{"derp", "direct_ipv4"}[i%2]},
			{Name: "reason", Value: "acl_drop_or_error_code"},
		}
		if i < Forwarded/2 {
			s.Name, s.Type = fmt.Sprintf("tailscaled_%02d_network_activity_total", i), agent.Counter
		} else {
			s.Name, s.Type = fmt.Sprintf("agent_process_%02d_resource_usage", i), agent.Gauge
		}
		r.encodings[i].Head = string(rune(s.Type)) + s.Name
		for _, l := range s.Labels {
			r.encodings[i].Tail += l.Name + "\x00" + l.Value + "\x00"
		}
	}
	r.Set(0)
	return r
}

// Set gives every value of the report that of a round. From one round to the
// next all of them change.
func (r *Report) Set(round int) {
	r.stats = agent.Stats{
		RxBytes:         int64(1 + (r.n*1000+round)%123457),
		TxBytes:         int64(1 + round%1000),
		ConnectionCount: int64((r.n + round) % 7),
		MedianLatencyMS: 1 + float64((r.n+round)%50)/4,
		Sessions: agent.Sessions{
			VSCode:          int64(round % 3),
			JetBrains:       int64(round % 2),
			ReconnectingPTY: int64((1 + round) % 2),
			SSH:             int64((1 + round) % 3),
		},
	}
	for i := range r.samples {
		s := &r.samples[i]
		s.Value = float64(r.n + i + round)
		if s.Type == agent.Gauge {
			s.Value = float64(r.n+round) / float64(i+3)
		}
	}
}

// Of makes it the report of agent n, in a round. Its samples are the same.
func (r *Report) Of(n, round int) {
	r.n = n
	r.Set(round)
}

// Stats implements agent.Report.
func (r *Report) Stats() agent.Stats { return r.stats }

// Len implements agent.Report.
func (r *Report) Len() int { return len(r.samples) }

// Match implements agent.Report.
func (r *Report) Match(i int, f *agent.SampleEncoding) (float64, bool) {
	return r.samples[i].Value, r.encodings[i] == *f
}

// Sample implements agent.Report.
func (r *Report) Sample(i int) *agent.Sample {
	r.current = r.samples[i]
	return &r.current
}

// Encoding implements agent.Report.
func (r *Report) Encoding(i int) agent.SampleEncoding { return r.encodings[i] }

// Series is one series as it is exposed.
type Series struct {
	Name    string
	Counter bool
	// Labels and Values are in the order of the labels' names.
	Labels, Values []string
	Value          float64
}

var (
	gaugeLabels     = []string{"agent_name", "username", "workspace_name"}
	forwardedLabels = []string{"agent_name", "path", "reason", "template_name", "username", "workspace_name"}
)

// gaugeNames are those that the service makes of a report.
var gaugeNames = [Gauges]string{
	"coderd_agentstats_rx_bytes",
	"coderd_agentstats_tx_bytes",
	"coderd_agentstats_connection_count",
	"coderd_agentstats_connection_median_latency_seconds",
	"coderd_agentstats_session_count_vscode",
	"coderd_agentstats_session_count_jetbrains",
	"coderd_agentstats_session_count_reconnecting_pty",
	"coderd_agentstats_session_count_ssh",
}

// Each yields the series of agent n that its report in round 0 makes, always in
// the same order of families.
func Each(n int) iter.Seq[Series] {
	return func(yield func(Series) bool) {
		r, ident := NewReport(n, Forwarded), Identity(n)
		s := r.stats
		for i, v := range [Gauges]float64{
			float64(s.RxBytes), float64(s.TxBytes), float64(s.ConnectionCount), s.MedianLatencyMS / 1000,
			float64(s.Sessions.VSCode), float64(s.Sessions.JetBrains), float64(s.Sessions.ReconnectingPTY), float64(s.Sessions.SSH),
		} {
			if !yield(Series{
				Name: gaugeNames[i], Labels: gaugeLabels, Value: v,
				Values: []string{ident.AgentName, ident.Username, ident.WorkspaceName},
			}) {
				return
			}
		}
		for _, s := range r.samples {
			if !yield(Series{
				Name: s.Name, Counter: s.Type == agent.Counter, Labels: forwardedLabels, Value: s.Value,
				Values: []string{ident.AgentName, s.Labels[0].Value, s.Labels[1].Value, ident.TemplateName, ident.Username, ident.WorkspaceName},
			}) {
				return
			}
		}
	}
}

// Families returns the names of all families.
func Families() map[string]bool {
	names := make(map[string]bool, PerAgent)
	for s := range Each(0) {
		names[s.Name] = true
	}
	return names
}
