package fleet

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// The families that the fleet computes of agents and workspaces.
const (
	familyUp          = "coderd_agents_up"
	familyConnections = "coderd_agents_connections"
	familyLatencies   = "coderd_agents_connection_latencies_seconds"
	familyApps        = "coderd_agents_apps"
)

// status returns how an agent stands to the service. Online is one with a live
// session; seen is one that had a session ever. One that was created at an
// unknown time is old.
func status(reg *agent.Registration, online, seen bool, now time.Time) agent.Status {
	switch {
	case online:
		return agent.StatusConnected
	case seen:
		return agent.StatusDisconnected
	case reg.ConnectionTimeout > 0 && now.Sub(reg.CreatedAt) > reg.ConnectionTimeout:
		return agent.StatusTimeout
	default:
		return agent.StatusConnecting
	}
}

// upSeries returns the series of a workspace, with the version of its template if
// that is to be told.
func upSeries(w *agent.Workspace, connected int, version bool) []agent.Series {
	labels := make([]agent.Label, 0, 4)
	labels = append(labels, agent.Label{Name: "template_name", Value: w.Template.Name})
	if version {
		labels = append(labels, agent.Label{Name: "template_version", Value: cmp.Or(w.Template.Version, "unknown")})
	}
	labels = append(labels, agent.Label{Name: "username", Value: w.OwnerUsername}, agent.Label{Name: "workspace_name", Value: w.Name})
	return []agent.Series{{Family: familyUp, Labels: labels, Value: float64(connected)}}
}

// agentSeries returns the series of an agent: its connection, its apps and,
// while it is connected, its latencies.
func agentSeries(reg *agent.Registration, s *agent.State, st agent.Status) []agent.Series {
	name := agent.Label{Name: "agent_name", Value: reg.Name}
	user := agent.Label{Name: "username", Value: reg.Workspace.OwnerUsername}
	space := agent.Label{Name: "workspace_name", Value: reg.Workspace.Name}
	node := "unknown"
	if s.Network.NodeID != 0 {
		node = "nodeid:" + strconv.FormatUint(s.Network.NodeID, 16)
	}
	series := make([]agent.Series, 0, 1+len(reg.Apps)+len(s.Network.Regions))
	series = append(series, agent.Series{
		Family: familyConnections,
		Labels: []agent.Label{
			name,
			{Name: "lifecycle_state", Value: string(lifecycleOf(s))},
			{Name: "status", Value: string(st)},
			{Name: "tailnet_node", Value: node},
			user, space,
		},
		Value: 1,
	})
	for _, c := range countApps(reg.Apps, s.AppHealth) {
		series = append(series, agent.Series{
			Family: familyApps,
			Labels: []agent.Label{name, {Name: "app_name", Value: c.name}, {Name: "health", Value: string(c.health)}, user, space},
			Value:  float64(c.count),
		})
	}
	if st != agent.StatusConnected {
		return series
	}
	for _, r := range latencies(&s.Network) {
		series = append(series, agent.Series{
			Family: familyLatencies,
			Labels: []agent.Label{name, {Name: "derp_region", Value: r.name}, {Name: "preferred", Value: strconv.FormatBool(r.preferred)}, user, space},
			Value:  r.seconds,
		})
	}
	return series
}

// lifecycleOf returns the state of life, also of an agent that told none.
func lifecycleOf(s *agent.State) agent.LifecycleState {
	return cmp.Or(s.Lifecycle.State, agent.LifecycleCreated)
}

// appCount is how many apps of an agent have a name and a health.
type appCount struct {
	name   string
	health agent.AppHealth
	count  int
}

// countApps counts apps by display name, or slug if they have none, and health:
// the newest reported, before that the registered one, and disabled if there is
// neither.
func countApps(apps []agent.App, reported map[agent.ID]agent.AppHealth) []appCount {
	counts := make([]appCount, 0, len(apps))
	for i := range apps {
		app := &apps[i]
		name := cmp.Or(app.DisplayName, app.Slug)
		health := cmp.Or(reported[app.ID], app.Health, agent.AppHealthDisabled)
		at := slices.IndexFunc(counts, func(c appCount) bool { return c.name == name && c.health == health })
		if at < 0 {
			counts = append(counts, appCount{name, health, 0})
			at = len(counts) - 1
		}
		counts[at].count++
	}
	return counts
}

// latency is how far an agent is from a region.
type latency struct {
	name      string
	preferred bool
	seconds   float64
}

// latencies returns the measured latencies. Regions of one name are one: the
// preferred one of them counts, else the nearest.
func latencies(n *agent.Network) []latency {
	out := make([]latency, 0, len(n.Regions))
	for i := range n.Regions {
		r := &n.Regions[i]
		if r.Latency < 0 {
			continue
		}
		l := latency{r.Name, r.ID == n.PreferredRegion && r.ID != 0, r.Latency.Seconds()}
		if l.name == "" {
			l.name = fmt.Sprintf("Unnamed %d", r.ID)
		}
		at := slices.IndexFunc(out, func(o latency) bool { return o.name == l.name })
		switch {
		case at < 0:
			out = append(out, l)
		case l.preferred == out[at].preferred && l.seconds < out[at].seconds, l.preferred && !out[at].preferred:
			out[at] = l
		}
	}
	return out
}

// up is the series of a workspace. Its mutex comes after entry.mu.
type up struct {
	key agent.SeriesKey // the workspace's; it does not change

	mu sync.Mutex
	// labels is nil while the workspace is not served: another has its labels,
	// or it is gone. It is replaced, never changed.
	labels *agent.Workspace
	// Agents that are connected to this replica, and to others.
	here, elsewhere int
}

// place is where an agent counts as connected.
type place struct {
	workspace *workspace // nil: nowhere
	elsewhere bool       // not to this replica
}

// served tells whether the states of the workspace's agents are served.
func (w *workspace) served() bool {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	return w.up.labels != nil
}

// count adds n connected agents.
func (f *Fleet) count(at place, n int) {
	w := at.workspace
	if w == nil {
		return
	}
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	if at.elsewhere {
		w.up.elsewhere += n
	} else {
		w.up.here += n
	}
	f.setUpLocked(w)
}

// shows tells whether this replica serves the state of what has agents connected
// here or elsewhere: each replica that of its own, the leader what is nobody's.
// One that the others may take for gone serves none.
func (f *Fleet) shows(here, elsewhere bool) bool {
	if f.peers == nil {
		return true
	}
	return f.peers.member.Load() && (here || !elsewhere && f.peers.leads.Load())
}

// label serves the workspace with these labels; nil: not at all. It returns
// whether that changes anything.
func (f *Fleet) label(w *workspace, labels *agent.Workspace) bool {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	old := w.up.labels
	if old == nil && labels == nil || old != nil && labels != nil && equalWorkspace(old, labels) {
		return false
	}
	w.up.labels = labels
	f.setUpLocked(w)
	return true
}

func (f *Fleet) setUpLocked(w *workspace) {
	if w.up.labels == nil || !f.shows(w.up.here > 0, w.up.elsewhere > 0) {
		f.series.SetState(w.up.key, nil)
		return
	}
	f.series.SetState(w.up.key, upSeries(w.up.labels, w.up.here, f.opts.UpTemplateVersion))
}

// present makes known how the agent is now: its series, its part in the count of
// its workspace, and the news of it. Whoever changed something that they are
// made of calls it before e.mu is released.
func (f *Fleet) presentLocked(e *entry, now time.Time) {
	is := f.standingLocked(e, now)
	if e.counted != is.counted {
		f.count(e.counted, -1)
		f.count(is.counted, 1)
	}
	news := e.status != is.status
	e.status, e.counted, e.shown = is.status, is.counted, is.shown
	if is.shown {
		f.series.SetState(agent.SeriesKey{ID: e.id}, agentSeries(e.reg.Load(), &e.state, is.status))
	} else {
		f.series.SetState(agent.SeriesKey{ID: e.id}, nil)
	}
	if news {
		f.news.tell(e.id)
	}
}

// standing is how an agent stands to the service, and what this replica makes of
// it.
type standing struct {
	status  agent.Status
	counted place
	shown   bool
}

func (f *Fleet) standingLocked(e *entry, now time.Time) standing {
	in := !e.leaving && !e.gone
	here := in && e.session != nil
	elsewhere := in && !here && f.elsewhereLocked(e)
	s := standing{
		status: status(e.reg.Load(), here || elsewhere, e.newest.Epoch != 0, now),
		shown:  in && f.shows(here, elsewhere) && e.workspace.served(),
	}
	if here || elsewhere {
		s.counted = place{e.workspace, elsewhere}
	}
	return s
}

// present is presentLocked for agents that are not locked.
func (f *Fleet) present(agents []*entry) {
	now := time.Now()
	for _, e := range agents {
		e.mu.Lock()
		f.presentLocked(e, now)
		e.mu.Unlock()
	}
}

// faceKey is what makes workspaces the same to whoever scrapes.
type faceKey struct{ username, workspace string }

func faceOf(w *agent.Workspace) faceKey { return faceKey{w.OwnerUsername, w.Name} }

// elect has, of workspaces with equal names, the one with the newest build
// served. It returns the workspaces whose labels changed. The caller may change
// the registrations.
func (f *Fleet) elect(r *roster, faces map[faceKey]struct{}) []*workspace {
	var changed []*workspace
	for face := range faces {
		list := r.faces[face]
		if len(list) == 0 {
			continue
		}
		newest := slices.MaxFunc(list, func(a, b *workspace) int {
			return cmp.Or(a.Build.CreatedAt.Compare(b.Build.CreatedAt), bytes.Compare(a.ID[:], b.ID[:]))
		})
		for _, w := range list {
			labels := (*agent.Workspace)(nil)
			if w == newest {
				copied := w.Workspace
				labels = &copied
			}
			if f.label(w, labels) {
				changed = append(changed, w)
			}
		}
	}
	return changed
}
