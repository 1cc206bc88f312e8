package agentapi

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxSessionNames of one report are looked at, the known ones first.
const maxSessionNames = 64

// report implements agent.Report over the generated message. It is valid until
// its release.
type report struct {
	message *agentstatsv1.Stats
	stats   agent.Stats
	// overflow is the number of session names beyond those looked at.
	overflow int
	// sample and its labels are overwritten by each one that is yielded.
	sample agent.Sample
	labels []agent.Label
}

// reports are reused, so that an idle stream holds no buffer.
var reports = sync.Pool{New: func() any { return new(report) }}

func newReport(message *agentstatsv1.Stats) *report {
	r, _ := reports.Get().(*report)
	r.message = message
	sessions, overflow := sessionsOf(message)
	r.overflow = overflow
	r.stats = agent.Stats{
		RxBytes:         message.GetRxBytes(),
		TxBytes:         message.GetTxBytes(),
		ConnectionCount: message.GetConnectionCount(),
		MedianLatencyMS: message.GetConnectionMedianLatencyMs(),
		Sessions:        sessions,
	}
	return r
}

// release gives the report back. Its strings are the message's: none is kept.
func (r *report) release() {
	clear(r.labels[:cap(r.labels)])
	*r = report{labels: r.labels[:0]}
	reports.Put(r)
}

// Stats implements agent.Report.
func (r *report) Stats() agent.Stats { return r.stats }

// Samples implements agent.Report.
func (r *report) Samples() iter.Seq[*agent.Sample] { return r.samples }

func (r *report) samples(yield func(*agent.Sample) bool) {
	for _, m := range r.message.GetMetrics() {
		r.labels = r.labels[:0]
		for _, l := range m.GetLabels() {
			r.labels = append(r.labels, agent.Label{Name: l.GetName(), Value: l.GetValue()})
		}
		r.sample = agent.Sample{Name: m.GetName(), Type: sampleType(m.GetType()), Value: m.GetValue(), Labels: r.labels}
		if !yield(&r.sample) {
			return
		}
	}
}

// sampleType takes a type that this version does not know as none.
func sampleType(t agentstatsv1.Stats_Metric_Type) agent.SampleType {
	switch t {
	case agentstatsv1.Stats_Metric_TYPE_COUNTER:
		return agent.Counter
	case agentstatsv1.Stats_Metric_TYPE_GAUGE:
		return agent.Gauge
	}
	return agent.Untyped
}

// sessionFamily is the family of apps that a session belongs to.
type sessionFamily uint8

const (
	familyUnknown sessionFamily = iota
	familyVSCode
	familyJetBrains
	familyReconnectingPTY
	familySSH
)

// sessionFamilies are the names of apps in session_counts. Editors made from
// VS Code count as it.
var sessionFamilies = map[string]sessionFamily{
	"vscode":           familyVSCode,
	"vscode_insiders":  familyVSCode,
	"vscodium":         familyVSCode,
	"cursor":           familyVSCode,
	"windsurf":         familyVSCode,
	"kiro":             familyVSCode,
	"positron":         familyVSCode,
	"trae":             familyVSCode,
	"antigravity":      familyVSCode,
	"jetbrains":        familyJetBrains,
	"reconnecting_pty": familyReconnectingPTY,
	"ssh":              familySSH,
}

// sessionsOf returns the open sessions by family. If any entry of session_counts
// is positive, those count, else the four older fields do. Of the names that it
// does not know only as many are looked at as maxSessionNames leaves; they would
// all be "unknown", which is in none of the four families.
func sessionsOf(m *agentstatsv1.Stats) (_ agent.Sessions, overflow int) {
	var s agent.Sessions
	positive := false
	counts := m.GetSessionCounts()
	for _, name := range sessionNames(counts) {
		n := counts[name]
		if n <= 0 {
			continue
		}
		positive = true
		switch sessionFamilies[normalName(name)] {
		case familyVSCode:
			s.VSCode = saturatingAdd(s.VSCode, n)
		case familyJetBrains:
			s.JetBrains = saturatingAdd(s.JetBrains, n)
		case familyReconnectingPTY:
			s.ReconnectingPTY = saturatingAdd(s.ReconnectingPTY, n)
		case familySSH:
			s.SSH = saturatingAdd(s.SSH, n)
		case familyUnknown:
		}
	}
	overflow = max(0, len(counts)-maxSessionNames)
	if positive {
		return s, overflow
	}
	return agent.Sessions{
		VSCode:          m.GetSessionCountVscode(),
		JetBrains:       m.GetSessionCountJetbrains(),
		ReconnectingPTY: m.GetSessionCountReconnectingPty(),
		SSH:             m.GetSessionCountSsh(),
	}, overflow
}

// sessionNames returns the names that are looked at, the same ones each time.
func sessionNames(counts map[string]int64) []string {
	if len(counts) == 0 {
		return nil
	}
	names := slices.AppendSeq(make([]string, 0, len(counts)), maps.Keys(counts))
	if len(names) <= maxSessionNames {
		return names
	}
	slices.SortFunc(names, func(a, b string) int {
		if knownA, knownB := isKnown(a), isKnown(b); knownA != knownB {
			if knownA {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return names[:maxSessionNames]
}

func isKnown(name string) bool { return sessionFamilies[normalName(name)] != familyUnknown }

// normalName returns the name in lower case with underscores.
func normalName(name string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "-", "_")
}

func saturatingAdd(a, b int64) int64 {
	if sum := a + b; sum >= a {
		return sum
	}
	return 1<<63 - 1
}
