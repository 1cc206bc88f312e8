// Package families computes the series that the service makes of an agent's state.
// It has no state of its own.
package families

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Families that the fleet computes for agents and workspaces.
const (
	FamilyUp          = "coderd_agents_up"
	familyConnections = "coderd_agents_connections"
	familyLatencies   = "coderd_agents_connection_latencies_seconds"
	familyApps        = "coderd_agents_apps"
	FamilyInfo        = "agentstatsd_workspace_info"
)

// Status returns the status of an agent. online: it has a live session. seen: it had
// one before. It times out so long after it was created, unless timeout is 0. A zero time
// counts as long ago.
func Status(created time.Time, timeout time.Duration, online, seen bool, now time.Time) agent.Status {
	switch {
	case online:
		return agent.StatusConnected
	case seen:
		return agent.StatusDisconnected
	case timeout > 0 && now.Sub(created) > timeout:
		return agent.StatusTimeout
	default:
		return agent.StatusConnecting
	}
}

// Up returns the series of a workspace, with the template's version if version
// is true.
func Up(w *agent.Workspace, connected int, version bool) []agent.Series {
	labels := make([]agent.Label, 0, 4)
	labels = append(labels, agent.Label{Name: "template_name", Value: w.Template.Name})
	if version {
		labels = append(labels, templateVersion(w))
	}
	labels = append(labels, agent.Label{Name: "username", Value: w.OwnerUsername}, agent.Label{Name: "workspace_name", Value: w.Name})
	return []agent.Series{{Family: FamilyUp, Labels: labels, Value: float64(connected)}}
}

// Info returns what a workspace is made of, for joins with families that have its owner and
// name.
func Info(w *agent.Workspace) agent.Series {
	return agent.Series{
		Family: FamilyInfo,
		Labels: []agent.Label{
			{Name: "organization_name", Value: w.Organization},
			{Name: "template_name", Value: w.Template.Name},
			templateVersion(w),
			{Name: "username", Value: w.OwnerUsername},
			{Name: "workspace_name", Value: w.Name},
		},
		Value: 1,
	}
}

// templateVersion is a label of the version, also where coderd sent none.
func templateVersion(w *agent.Workspace) agent.Label {
	return agent.Label{Name: "template_version", Value: cmp.Or(w.Template.Version, "unknown")}
}

// Agent returns the series of an agent: its connection, its apps and, while it
// is connected, its latencies.
func Agent(reg *agent.Registration, s *agent.State, st agent.Status) []agent.Series {
	name := agent.Label{Name: "agent_name", Value: reg.Name}
	user := agent.Label{Name: "username", Value: reg.Workspace.OwnerUsername}
	space := agent.Label{Name: "workspace_name", Value: reg.Workspace.Name}
	series := make([]agent.Series, 0, 1+len(reg.Apps)+len(s.Network.Regions))
	series = append(series, agent.Series{
		Family: familyConnections,
		Labels: []agent.Label{
			name,
			{Name: "lifecycle_state", Value: string(s.CurrentLifecycle())},
			{Name: "status", Value: string(st)},
			{Name: "tailnet_node", Value: node(s.Network.NodeID, st)},
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

// node returns the name of an agent's tailnet node as Coder has it. As there, it is
// unknown while the agent is not connected. The state has the node of the last session.
func node(id uint64, st agent.Status) string {
	if id == 0 || st != agent.StatusConnected {
		return "unknown"
	}
	return "nodeid:" + strconv.FormatUint(id, 16)
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
