// Package removals says what was removed after somebody got a registration of it.
package removals

import (
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Removals are when agents and workspaces were removed last.
type Removals struct{ agents, workspaces map[agent.ID]time.Time }

// Of returns those of the list, whose ages are as of now.
func Of(list []agent.Removal, now time.Time) Removals {
	r := Removals{make(map[agent.ID]time.Time), make(map[agent.ID]time.Time)}
	for _, removal := range list {
		of := r.agents
		if removal.IsWorkspace {
			of = r.workspaces
		}
		of[removal.ID] = now.Add(-removal.Age)
	}
	return r
}

// HasAgent reports whether the agent was removed after its registration was got. The zero
// time is that of a current one.
func (r Removals) HasAgent(id agent.ID, gotAt time.Time) bool { return isAfter(r.agents, id, gotAt) }

// HasWorkspace is HasAgent of a workspace.
func (r Removals) HasWorkspace(id agent.ID, gotAt time.Time) bool {
	return isAfter(r.workspaces, id, gotAt)
}

func isAfter(removed map[agent.ID]time.Time, id agent.ID, gotAt time.Time) bool {
	at, found := removed[id]
	return found && !gotAt.IsZero() && at.After(gotAt)
}
