package agentapi

import (
	"slices"
	"strings"
	"sync"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxSessionNames of one report are looked at, the known ones first.
const maxSessionNames = 64

// messageReport implements agent.Report over the generated message. It is valid
// until its release.
type messageReport struct {
	message *agentstatsv1.Stats
	stats   agent.Stats
	// overflow is the number of session names beyond those looked at.
	overflow int
	sample   agent.Sample
	labels   []agent.Label
}

// messageReports are reused, so that a stream that is idle holds none.
var messageReports = sync.Pool{New: func() any { return new(messageReport) }}

func newMessageReport(message *agentstatsv1.Stats) *messageReport {
	r, _ := messageReports.Get().(*messageReport)
	r.message = message
	counts := message.GetSessionCounts()
	r.overflow = max(0, len(counts)-maxSessionNames)
	r.stats = agent.Stats{
		RxBytes:         message.GetRxBytes(),
		TxBytes:         message.GetTxBytes(),
		ConnectionCount: message.GetConnectionCount(),
		MedianLatencyMS: message.GetConnectionMedianLatencyMs(),
		Sessions: sessionsOf(countedApps(counts), agent.Sessions{
			VSCode:          message.GetSessionCountVscode(),
			JetBrains:       message.GetSessionCountJetbrains(),
			ReconnectingPTY: message.GetSessionCountReconnectingPty(),
			SSH:             message.GetSessionCountSsh(),
		}),
	}
	return r
}

// release gives the report back. Its strings are the message's: none is kept.
func (r *messageReport) release() {
	clear(r.labels[:cap(r.labels)])
	*r = messageReport{labels: r.labels[:0]}
	messageReports.Put(r)
}

// Stats implements agent.Report.
func (r *messageReport) Stats() agent.Stats { return r.stats }

// Len implements agent.Report.
func (r *messageReport) Len() int { return len(r.message.GetMetrics()) }

// Match implements agent.Report: a decoded sample has no form.
func (r *messageReport) Match(int, *agent.Form) (float64, bool) { return 0, false }

// Form implements agent.Report.
func (r *messageReport) Form(int) agent.Form { return agent.Form{} }

// Sample implements agent.Report.
func (r *messageReport) Sample(i int) *agent.Sample {
	m := r.message.GetMetrics()[i]
	r.labels = r.labels[:0]
	for _, l := range m.GetLabels() {
		r.labels = append(r.labels, agent.Label{Name: l.GetName(), Value: l.GetValue()})
	}
	r.sample = agent.Sample{Name: m.GetName(), Type: sampleType(m.GetType()), Value: m.GetValue(), Labels: r.labels}
	return &r.sample
}

// sampleType returns the sample's type; UnknownType if the contract has it not.
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

// sessionsOf returns the open sessions by family. If any of the apps, whose names
// differ, has sessions, they count, else what the four older fields say. Names
// that are not known would be "unknown", which is in none of the four families.
func sessionsOf(apps []appSessions, older agent.Sessions) agent.Sessions {
	var s agent.Sessions
	positive := false
	for i := range apps {
		n := apps[i].count
		if n <= 0 {
			continue
		}
		positive = true
		switch sessionFamilies[normalName(apps[i].name)] {
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
	if positive {
		return s
	}
	return older
}

// appSessions are the open sessions of one app, or the connections by one
// protocol.
type appSessions struct {
	name  string
	count int64
	known bool // only while it is chosen
}

// countedApps returns the names that are looked at: maxSessionNames of them, the
// same ones each time: the known ones first, then in their order.
func countedApps(counts map[string]int64) []appSessions {
	if len(counts) == 0 {
		return nil
	}
	apps := make([]appSessions, 0, min(len(counts), 2*maxSessionNames))
	if len(counts) <= maxSessionNames {
		for name, n := range counts {
			apps = append(apps, appSessions{name: name, count: n})
		}
		return apps
	}
	// The best so far and as many more are kept: a report can have tens of
	// thousands of names, of which few are sorted at once, and none is normalised
	// twice.
	for name, n := range counts {
		apps = append(apps, appSessions{name, n, isKnown(name)})
		if len(apps) == cap(apps) {
			apps = firstApps(apps)
		}
	}
	return firstApps(apps)
}

// firstApps returns the first maxSessionNames.
func firstApps(apps []appSessions) []appSessions {
	slices.SortFunc(apps, func(a, b appSessions) int {
		if a.known != b.known {
			if a.known {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	return apps[:min(len(apps), maxSessionNames)]
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
