package aggregator

import (
	"slices"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// sessionsFamily is one of the newer families of Coder, of which the contract
// knows nothing.
var sessionsFamily = &metrics.Family{
	Name: "coderd_agentstats_session_count", Type: metrics.Gauge, Owner: metrics.OwnerService, Group: metrics.GroupSum,
	Labels: []string{"agent_name", "app_name", "family", "username", "workspace_name"},
	Help:   "The number of open sessions by app.",
}

// appSeries has the sessions of one app.
type appSeries struct {
	series
	app agent.SessionApp
}

// newSessionDescs returns what the series of each app have in common.
func newSessionDescs(f *family) (descs [len(agent.SessionApps)]*desc) {
	for app, names := range agent.SessionApps {
		d := &desc{family: f, name: f.name, labels: []agent.Label{{Name: "app_name", Value: names.Name}, {Name: "family", Value: names.Family}}}
		d.refs.Store(1)
		descs[app] = d
	}
	return descs
}

// sessions makes the source's sessions those of a report. Counts that are refused
// are so by their families.
func (in *intake) sessions(counts *agent.AppCounts) {
	src := in.src
	at := 0
	for app, n := range counts {
		have := at < len(src.sessions) && src.sessions[at].app == agent.SessionApp(app)
		switch present := n > 0 && n <= agent.MaxReportedCount; {
		case have && present:
			src.sessions[at].set(float64(n))
			at++
		case have:
			in.agg.drop(src, &src.sessions[at].series)
			src.sessions = slices.Delete(src.sessions, at, at+1)
		case present:
			d := in.agg.apps[app]
			d.refs.Add(1)
			in.agg.series.Add(1)
			s := appSeries{app: agent.SessionApp(app)}
			s.series, in.prefix, _ = in.agg.create(src, d, agent.Gauge, float64(n), in.prefix)
			s.set(float64(n))
			src.sessions = slices.Insert(src.sessions, at, s)
			at++
		}
	}
}
