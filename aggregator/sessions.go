package aggregator

import (
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// sessionsFamily is one of Coder's newer families, which the contract lacks.
var sessionsFamily = &metrics.Family{
	Name: "coderd_agentstats_session_count", Type: metrics.Gauge, Owner: metrics.OwnerService, Group: metrics.GroupSum,
	Labels: []string{"agent_name", "app_name", "family", "username", "workspace_name"},
	Help:   "The number of open sessions by app.",
}

// appSeries is the number of sessions of one app.
type appSeries struct {
	series
	app agent.SessionApp
}

// newSessionDescs returns the descs of all apps.
func newSessionDescs(f *family) (descs [len(agent.SessionApps)]*desc) {
	for app, names := range agent.SessionApps {
		d := &desc{family: f, name: f.name, labels: []agent.Label{{Name: "app_name", Value: names.Name}, {Name: "family", Value: names.Family}}}
		d.refs.Store(1)
		descs[app] = d
	}
	return descs
}

// ingestSessions replaces the agent's sessions by those of a report. ingestStats
// refuses invalid counts by their families.
func (in *ingester) ingestSessions(counts *agent.AppCounts) {
	as := in.agent
	at := 0
	for app, n := range counts {
		have := at < len(as.sessions) && as.sessions[at].app == agent.SessionApp(app)
		switch present := n > 0 && n <= agent.MaxReportedCount; {
		case have && present:
			as.sessions[at].set(float64(n))
			at++
		case have:
			in.agg.drop(as, &as.sessions[at].series)
			as.sessions = slices.Delete(as.sessions, at, at+1)
		case present:
			d := in.agg.apps[app]
			d.refs.Add(1)
			in.agg.series.Add(1)
			s := appSeries{app: agent.SessionApp(app)}
			s.series, in.prefix, _ = in.agg.create(as, d, agent.Gauge, float64(n), in.prefix)
			s.set(float64(n))
			as.sessions = slices.Insert(as.sessions, at, s)
			at++
		}
	}
}
