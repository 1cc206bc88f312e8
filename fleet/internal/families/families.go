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

// Buffer has the memory of series. The zero value is ready for use.
type Buffer struct {
	series []agent.Series
	labels []agent.Label
	counts []appCount
}

// Reset makes the memory of all series that were returned that of the next ones.
func (b *Buffer) Reset() {
	clear(b.series)
	clear(b.labels)
	b.series, b.labels = b.series[:0], b.labels[:0]
}

func (b *Buffer) add(family string, value float64, labels ...agent.Label) {
	from := len(b.labels)
	b.labels = append(b.labels, labels...)
	b.series = append(b.series, agent.Series{Family: family, Labels: b.labels[from:len(b.labels):len(b.labels)], Value: value})
}

// since returns the series that were added behind the first n.
func (b *Buffer) since(n int) []agent.Series { return b.series[n:len(b.series):len(b.series)] }

// Workspace returns the series of a workspace: how many of its agents are connected, if version
// is true with the template's version, and if info is true what it is made of, for joins with
// families that have its owner and name. They are valid until Reset.
func (b *Buffer) Workspace(w *agent.Workspace, connected int, version, info bool) []agent.Series {
	from := len(b.series)
	template := agent.Label{Name: "template_name", Value: w.Template.Name}
	templateVersion := agent.Label{Name: "template_version", Value: cmp.Or(w.Template.Version, "unknown")} // also where coderd sent none
	user := agent.Label{Name: "username", Value: w.OwnerUsername}
	space := agent.Label{Name: "workspace_name", Value: w.Name}
	if version {
		b.add(FamilyUp, float64(connected), template, templateVersion, user, space)
	} else {
		b.add(FamilyUp, float64(connected), template, user, space)
	}
	if info {
		b.add(FamilyInfo, 1, agent.Label{Name: "organization_name", Value: w.Organization}, template, templateVersion, user, space)
	}
	return b.since(from)
}

// Agent returns the series of an agent: its connection, its apps and, while it is connected,
// its latencies. They are valid until Reset.
func (b *Buffer) Agent(reg *agent.Registration, s *agent.State, st agent.Status) []agent.Series {
	from := len(b.series)
	name := agent.Label{Name: "agent_name", Value: reg.Name}
	user := agent.Label{Name: "username", Value: reg.Workspace.OwnerUsername}
	space := agent.Label{Name: "workspace_name", Value: reg.Workspace.Name}
	b.add(
		familyConnections, 1,
		name,
		agent.Label{Name: "lifecycle_state", Value: string(s.CurrentLifecycle())},
		agent.Label{Name: "status", Value: string(st)},
		agent.Label{Name: "tailnet_node", Value: node(s.Network.NodeID, st)},
		user, space,
	)
	b.counts = countApps(b.counts[:0], reg.Apps, s.AppHealth)
	for _, c := range b.counts {
		app, health := agent.Label{Name: "app_name", Value: c.name}, agent.Label{Name: "health", Value: string(c.health)}
		b.add(familyApps, float64(c.count), name, app, health, user, space)
	}
	if st == agent.StatusConnected {
		for _, r := range latencies(&s.Network) {
			region, preferred := agent.Label{Name: "derp_region", Value: r.name}, agent.Label{Name: "preferred", Value: strconv.FormatBool(r.preferred)}
			b.add(familyLatencies, r.seconds, name, region, preferred, user, space)
		}
	}
	return b.since(from)
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

// countApps appends the counts of apps by name and health. The name is the display name, or else the
// slug. The health is the reported one, or else the registered one, or else disabled.
func countApps(counts []appCount, apps []agent.App, reported map[agent.ID]agent.AppHealth) []appCount {
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
