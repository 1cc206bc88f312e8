// Package plan decides what a change of the registrations comes to: what coderd asks for, and
// what other replicas wrote. Deciding changes nothing.
package plan

import (
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
)

// Plan is a decided change of the registrations.
type Plan struct {
	// Change is what the database is told.
	Change agent.Change
	// Agents are new or changed, those of a changed workspace included. Of what other replicas
	// wrote, some may be as they are registered.
	Agents map[agent.ID]*agent.Registration
	// Again are the agents that were named and did not change.
	Again []agent.ID
	// Named are the ids that were named, stale ones included.
	Named map[agent.ID]struct{}
	// Workspaces are the named ones, in their new version.
	Workspaces map[agent.ID]agent.Workspace
	// Superseded are registered agents in whose place a newer one comes.
	Superseded []agent.ID
	// Stale agents were named, and are older than what is registered or named beside them.
	Stale []agent.ID
	// Deregistered are registered agents that go.
	Deregistered []agent.ID
	// Unchanged is how many agents of the request, or of its workspaces, did not change.
	Unchanged int
	// Refused are the registrations that were refused alone.
	Refused []agent.RegistrationRefusal
}

// removed returns the set of agents that the plan removes.
func (p *Plan) removed() map[agent.ID]struct{} {
	ids := make(map[agent.ID]struct{}, len(p.Superseded)+len(p.Deregistered))
	for _, id := range p.Superseded {
		ids[id] = struct{}{}
	}
	for _, id := range p.Deregistered {
		ids[id] = struct{}{}
	}
	return ids
}

// addSiblings gives the other agents of changed workspaces their new data.
func (p *Plan) addSiblings(r Registered) {
	removed := p.removed()
	for id, w := range p.Workspaces {
		if known := r.Workspace(id); known != nil && !known.Equal(&w) {
			p.addAgentsOf(r, w, removed)
		}
	}
}

// addAgentsOf gives the agents of a registered workspace its new data, but for those that are
// planned.
func (p *Plan) addAgentsOf(r Registered, w agent.Workspace, removed map[agent.ID]struct{}) {
	for id, known := range r.AgentsIn(w.ID) {
		_, isRemoved := removed[id]
		if _, planned := p.Agents[id]; planned || isRemoved {
			continue
		}
		reg := known.Value(id)
		reg.Workspace = w
		p.Agents[id] = reg
	}
}

// use returns what the registrations take after the plan.
func (p *Plan) use(r Registered) capacity.Use {
	use, change := r.Use(), r.Change()
	for id := range p.removed() {
		if known := r.Agent(id); known != nil {
			use.Agents--
			change.RemoveRegistration(known)
		}
	}
	for i := range p.Change.Agents {
		reg := &p.Change.Agents[i]
		if known := r.Agent(reg.ID); known != nil {
			change.RemoveRegistration(known)
		} else {
			use.Agents++
		}
		change.AddRegistration(reg)
	}
	for _, id := range p.Change.RemovedWorkspaces {
		use.Workspaces--
		change.RemoveWorkspace(r.Workspace(id))
	}
	for i := range p.Change.Workspaces {
		w := &p.Change.Workspaces[i]
		if known := r.Workspace(w.ID); known != nil {
			change.RemoveWorkspace(known)
		} else {
			use.Workspaces++
		}
		change.AddWorkspace(w)
	}
	use.KeptBytes += change.Bytes()
	return use
}

// SetIncarnations sets the incarnations that the store assigned at the revision.
func (p *Plan) SetIncarnations(r Registered, revision int64) {
	for id, reg := range p.Agents {
		reg.Incarnation = revision
		if known := r.Agent(id); known != nil {
			reg.Incarnation = known.Incarnation
		}
	}
}

// IsEmpty returns whether the plan leaves the database as it is.
func (p *Plan) IsEmpty() bool {
	c := &p.Change
	return len(c.Agents)+len(c.Workspaces)+len(c.RemovedAgents)+len(c.RemovedWorkspaces)+
		len(c.NamedAgents)+len(c.NamedWorkspaces) == 0
}
