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

// Families that the fleet computes for agents and workspaces.
const (
	familyUp          = "coderd_agents_up"
	familyConnections = "coderd_agents_connections"
	familyLatencies   = "coderd_agents_connection_latencies_seconds"
	familyApps        = "coderd_agents_apps"
)

// status returns the status of an agent. online: it has a live session. seen: it had
// one before. A zero CreatedAt counts as long ago.
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

// upSeries returns the series of a workspace, with the template's version if version
// is true.
func upSeries(w *agent.Workspace, connected int, version bool) []agent.Series {
	labels := make([]agent.Label, 0, 4)
	labels = append(labels, agent.Label{Name: "template_name", Value: w.Template.Name})
	if version {
		labels = append(labels, agent.Label{Name: "template_version", Value: cmp.Or(w.Template.Version, "unknown")})
	}
	labels = append(labels, agent.Label{Name: "username", Value: w.OwnerUsername}, agent.Label{Name: "workspace_name", Value: w.Name})
	return []agent.Series{{Family: familyUp, Labels: labels, Value: float64(connected)}}
}

// agentSeries returns the series of an agent: its connection, its apps and, while it
// is connected, its latencies.
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

// lifecycleOf returns the lifecycle; LifecycleCreated if the agent reported none.
func lifecycleOf(s *agent.State) agent.LifecycleState {
	return cmp.Or(s.Lifecycle.State, agent.LifecycleCreated)
}

// appCount counts the apps of an agent with one name and health.
type appCount struct {
	name   string
	health agent.AppHealth
	count  int
}

// countApps counts apps by name and health. The name is the display name, or else the
// slug. The health is the reported one, or else the registered one, or else disabled.
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

// latency is the latency between an agent and a DERP region.
type latency struct {
	name      string
	preferred bool
	seconds   float64
}

// latencies returns the measured latencies. Regions with equal names are merged: the
// preferred one wins, else the nearest.
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

// up is the state of a workspace's series. Its mutex comes after entry.mu.
type up struct {
	key agent.SeriesKey // of the workspace; constant

	mu sync.Mutex
	// labels is nil while the workspace is hidden by a newer one with its labels, or
	// removed. It is replaced, never changed.
	labels *agent.Workspace
	// local and remote count the agents that are connected to this replica, and to
	// others.
	local, remote int
}

// connection says where an agent counts as connected.
type connection struct {
	workspace *workspace // nil: it is not connected
	remote    bool       // to another replica
}

// published returns whether the states of the workspace's agents are published.
func (w *workspace) published() bool {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	return w.up.labels != nil
}

// addConnected adds n to the connected agents of the workspace.
func (f *Fleet) addConnected(at connection, n int) {
	w := at.workspace
	if w == nil {
		return
	}
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	if at.remote {
		w.up.remote += n
	} else {
		w.up.local += n
	}
	f.publishUpLocked(w)
}

// publishes returns whether this replica publishes the state of an agent or a
// workspace. A replica publishes those with a local session. The leader publishes
// those without any session. A replica that is no member publishes nothing.
func (f *Fleet) publishes(local, remote bool) bool {
	if f.peers == nil {
		return true
	}
	return f.peers.member.Load() && (local || !remote && f.peers.leads.Load())
}

// setLabels publishes the workspace with these labels; nil: it is hidden. It returns
// whether the labels changed.
func (f *Fleet) setLabels(w *workspace, labels *agent.Workspace) bool {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	old := w.up.labels
	if old == nil && labels == nil || old != nil && labels != nil && equalWorkspace(old, labels) {
		return false
	}
	w.up.labels = labels
	f.publishUpLocked(w)
	return true
}

func (f *Fleet) publishUpLocked(w *workspace) {
	if w.up.labels == nil || !f.publishes(w.up.local > 0, w.up.remote > 0) {
		f.series.SetState(w.up.key, nil)
		return
	}
	f.series.SetState(w.up.key, upSeries(w.up.labels, w.up.local, f.opts.UpTemplateVersion))
}

// publishPresenceLocked publishes the agent's series and its part in the count of its
// workspace, and notifies watchers of another status. It is called after each change
// of what they are computed from, before e.mu is released.
func (f *Fleet) publishPresenceLocked(e *entry, now time.Time) {
	next := f.presenceLocked(e, now)
	if e.connection != next.connection {
		f.addConnected(e.connection, -1)
		f.addConnected(next.connection, 1)
	}
	statusChanged := e.status != next.status
	e.status, e.connection, e.published = next.status, next.connection, next.published
	if next.published {
		f.series.SetState(agent.SeriesKey{ID: e.id}, agentSeries(e.reg.Load(), &e.state, next.status))
	} else {
		f.series.SetState(agent.SeriesKey{ID: e.id}, nil)
	}
	if statusChanged {
		f.watchers.notify(e.id)
	}
}

// presence is the status of an agent and how this replica publishes it.
type presence struct {
	status     agent.Status
	connection connection
	published  bool
}

func (f *Fleet) presenceLocked(e *entry, now time.Time) presence {
	in := !e.leaving && !e.gone
	local := in && e.live != nil
	remote := in && !local && f.connectedRemotelyLocked(e)
	s := presence{
		status:    status(e.reg.Load(), local || remote, e.newest.Epoch != 0, now),
		published: in && f.publishes(local, remote) && e.workspace.published(),
	}
	if local || remote {
		s.connection = connection{e.workspace, remote}
	}
	return s
}

// publishPresence is publishPresenceLocked for unlocked agents.
func (f *Fleet) publishPresence(agents []*entry) {
	now := time.Now()
	for _, e := range agents {
		e.mu.Lock()
		f.publishPresenceLocked(e, now)
		e.mu.Unlock()
	}
}

// labelKey identifies workspaces by the labels of their series.
type labelKey struct{ username, workspace string }

func labelKeyOf(w *agent.Workspace) labelKey { return labelKey{w.OwnerUsername, w.Name} }

// electVisible chooses, of workspaces with equal labels, the one with the newest build.
// The others are hidden. It returns the workspaces whose labels changed. The caller
// holds changeSem.
func (f *Fleet) electVisible(r *registry, labelKeys map[labelKey]struct{}) []*workspace {
	var changed []*workspace
	for key := range labelKeys {
		list := r.byLabels[key]
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
			if f.setLabels(w, labels) {
				changed = append(changed, w)
			}
		}
	}
	return changed
}
