package fleet

import (
	"iter"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/plan"
)

// The registry is what changes are decided by.
var _ plan.Registered = &registry{}

// Agent returns the registration of an agent; nil: it is not registered.
func (r *registry) Agent(id agent.ID) *kept.Registration {
	if e := r.agents.Get(id); e != nil {
		return e.reg.Load()
	}
	return nil
}

// AgentWithToken returns the agent that has the token; zero: none has.
func (r *registry) AgentWithToken(hash [32]byte) (id agent.ID) {
	if e := r.tokens.Get(hash); e != nil {
		id = e.id
	}
	return id
}

// Workspace returns a workspace; nil: it is not registered.
func (r *registry) Workspace(id agent.ID) *kept.Workspace {
	if w := r.workspaces.Get(id); w != nil {
		return w.reg.Load()
	}
	return nil
}

// AgentNamed returns the workspace's agent with the name, other than those that skip returns
// true for; nil: there is none.
func (r *registry) AgentNamed(workspaceID agent.ID, name string, skip func(agent.ID) bool) (agent.ID, *kept.Registration) {
	if w := r.workspaces.Get(workspaceID); w != nil {
		for _, e := range w.agents {
			if reg := e.reg.Load(); reg.Name() == name && !skip(e.id) {
				return e.id, reg
			}
		}
	}
	return agent.ID{}, nil
}

// AgentsIn iterates over the agents of a registered workspace.
func (r *registry) AgentsIn(workspaceID agent.ID) iter.Seq2[agent.ID, *kept.Registration] {
	return registrationsOf(r.workspaces.Get(workspaceID).agents)
}

// AllAgents iterates over all agents, ordered by id.
func (r *registry) AllAgents() iter.Seq2[agent.ID, *kept.Registration] {
	return registrationsOf(r.order)
}

func registrationsOf(entries []*entry) iter.Seq2[agent.ID, *kept.Registration] {
	return func(yield func(agent.ID, *kept.Registration) bool) {
		for _, e := range entries {
			if !yield(e.id, e.reg.Load()) {
				return
			}
		}
	}
}

// AllWorkspaces iterates over all workspaces, in no order.
func (r *registry) AllWorkspaces() iter.Seq[*kept.Workspace] {
	return func(yield func(*kept.Workspace) bool) {
		for w := range r.workspaces.All() {
			if !yield(w.reg.Load()) {
				return
			}
		}
	}
}

// Change returns a change of what is kept, which is none yet.
func (r *registry) Change() *kept.Change { return r.texts.Change() }

// earlier returns what was last named at the revision or before, and before readAt, unless
// that is zero.
func (r *registry) earlier(revision uint64, readAt time.Time) plan.Earlier {
	covers := func(n *naming) bool {
		return n.revision <= revision && (readAt.IsZero() || n.at.Before(readAt))
	}
	return plan.Earlier{
		Agents: func(yield func(agent.ID, *kept.Registration) bool) {
			for _, e := range r.order {
				if covers(e.named) && !yield(e.id, e.reg.Load()) {
					return
				}
			}
		},
		Workspaces: func(yield func(*kept.Workspace) bool) {
			for w := range r.workspaces.All() {
				if covers(w.named) && !yield(w.reg.Load()) {
					return
				}
			}
		},
	}
}
