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
		RxPackets:       message.GetRxPackets(),
		TxPackets:       message.GetTxPackets(),
		ConnectionCount: message.GetConnectionCount(),
		MedianLatencyMS: message.GetConnectionMedianLatencyMs(),
	}
	apps := countedApps(counts)
	if r.overflow > 0 {
		// The others count together, as one that is not known.
		rest := appSessions{}
		for _, n := range counts {
			rest.count = saturatingAdd(rest.count, max(0, n))
		}
		for i := range apps {
			rest.count = max(0, rest.count-max(0, apps[i].count))
		}
		apps = append(apps, rest)
	}
	r.stats.Sessions, r.stats.Apps = countSessions(apps, agent.Sessions{
		VSCode:          message.GetSessionCountVscode(),
		JetBrains:       message.GetSessionCountJetbrains(),
		ReconnectingPTY: message.GetSessionCountReconnectingPty(),
		SSH:             message.GetSessionCountSsh(),
	})
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

// Match implements agent.Report: a decoded sample has no encoding.
func (r *messageReport) Match(int, *agent.SampleEncoding) (float64, bool) { return 0, false }

// Encoding implements agent.Report.
func (r *messageReport) Encoding(int) agent.SampleEncoding { return agent.SampleEncoding{} }

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

// sessionApps are the apps by their names in session_counts.
var sessionApps = func() map[string]agent.SessionApp {
	apps := make(map[string]agent.SessionApp, len(agent.SessionApps))
	for app, names := range agent.SessionApps {
		apps[names.Name] = agent.SessionApp(app)
	}
	return apps
}()

// countSessions returns the open sessions by family and by app. If any of the
// apps, whose names differ, has sessions, they count, else what the four older
// fields say. Names that are not known are in none of the four families.
func countSessions(apps []appSessions, older agent.Sessions) (agent.Sessions, agent.AppCounts) {
	var counts agent.AppCounts
	positive := false
	for i := range apps {
		if n := apps[i].count; n > 0 {
			positive = true
			app := &counts[sessionApps[normalName(apps[i].name)]]
			*app = saturatingAdd(*app, n)
		}
	}
	if !positive {
		counts[agent.AppVSCode], counts[agent.AppJetBrains] = older.VSCode, older.JetBrains
		counts[agent.AppReconnectingPTY], counts[agent.AppSSH] = older.ReconnectingPTY, older.SSH
		return older, counts
	}
	var s agent.Sessions
	for app, n := range counts {
		switch agent.SessionApps[app].Family {
		case "vscode":
			s.VSCode = saturatingAdd(s.VSCode, n)
		case "jetbrains":
			s.JetBrains = n
		case "reconnecting_pty":
			s.ReconnectingPTY = n
		case "ssh":
			s.SSH = n
		}
	}
	return s, counts
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

func isKnown(name string) bool { return sessionApps[normalName(name)] != agent.AppUnknown }

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
