package plan

import (
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/sets"
)

// FollowRemovals removes the agents that other replicas removed, also those that came
// back since: the new incarnation keeps nothing of the old one.
func FollowRemovals(r Registered, got *agent.Registrations) *Plan {
	p := &Plan{}
	for _, id := range got.RemovedAgents {
		if r.Agent(id) != nil {
			p.Deregistered = append(p.Deregistered, id)
		}
	}
	for i := range got.Agents {
		reg := &got.Agents[i]
		if known := r.Agent(reg.ID); known != nil && known.Incarnation != reg.Incarnation {
			p.Deregistered = append(p.Deregistered, reg.ID) // and came back
		}
	}
	if got.Complete {
		stay := make(map[agent.ID]struct{}, len(got.Agents))
		for i := range got.Agents {
			stay[got.Agents[i].ID] = struct{}{}
		}
		for id := range r.AllAgents() {
			if _, stays := stay[id]; !stays {
				p.Deregistered = append(p.Deregistered, id)
			}
		}
	}
	p.Change.RemovedAgents = p.Deregistered
	return p
}

// FollowChanges applies what other replicas registered or changed. It removes the
// workspaces that they removed, which have no agents any more.
func FollowChanges(r Registered, got *agent.Registrations) *Plan {
	p := &Plan{
		Agents:     make(map[agent.ID]*agent.Registration, len(got.Agents)),
		Named:      make(map[agent.ID]struct{}, len(got.Agents)),
		Workspaces: make(map[agent.ID]agent.Workspace, len(got.Workspaces)),
	}
	for _, w := range got.Workspaces {
		p.Workspaces[w.ID] = w
	}
	for _, reg := range (sets.Set{Agents: got.Agents}).Sorted().Agents {
		p.Agents[reg.ID] = &reg
		p.Named[reg.ID] = struct{}{}
		p.Workspaces[reg.Workspace.ID] = reg.Workspace
	}
	p.addSiblings(r)
	p.addNamed(r, got)
	removed := got.RemovedWorkspaces
	if got.Complete {
		removed = nil
		for w := range r.AllWorkspaces() {
			removed = append(removed, w.ID)
		}
	}
	for _, id := range removed {
		if _, stays := p.Workspaces[id]; !stays && r.Workspace(id) != nil {
			p.Change.RemovedWorkspaces = append(p.Change.RemovedWorkspaces, id)
		}
	}
	return p
}

// addNamed applies which unchanged agents and workspaces were named again.
func (p *Plan) addNamed(r Registered, got *agent.Registrations) {
	for _, id := range got.NamedAgents {
		if r.Agent(id) == nil {
			continue
		}
		if p.Agents[id] == nil {
			p.Again = append(p.Again, id)
		}
		p.Named[id] = struct{}{}
	}
	for _, id := range got.NamedWorkspaces {
		if known := r.Workspace(id); known != nil {
			if _, planned := p.Workspaces[id]; !planned {
				p.Workspaces[id] = known.Value()
			}
		}
	}
}
