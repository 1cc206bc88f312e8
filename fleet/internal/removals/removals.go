// Package removals says what was removed after somebody got a registration of it.
package removals

import (
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/ordered"
	"github.com/coder/agentstatsd/fleet/internal/sets"
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

// From returns the set without what was removed after its sender got it, and is not
// registered now. gone are the agents of these. It owns the set.
func (r Removals) From(set sets.Set, hasAgent, hasWorkspace func(agent.ID) bool) (left sets.Set, gone []agent.ID) {
	isWorkspaceGone := func(w *agent.Workspace, gotAt time.Time) bool {
		return !hasWorkspace(w.ID) && r.HasWorkspace(w.ID, gotAt)
	}
	set.Workspaces = ordered.Drop(set.Workspaces, func(w *agent.Workspace) bool { return isWorkspaceGone(w, set.ReadAt) })
	named := make(map[agent.ID]struct{}, len(set.Workspaces))
	for i := range set.Workspaces {
		named[set.Workspaces[i].ID] = struct{}{}
	}
	var emptied []agent.Workspace
	set.Agents = ordered.Drop(set.Agents, func(reg *agent.Registration) bool {
		gotAt, kept := set.GotAt[reg.ID]
		if !kept {
			gotAt = set.ReadAt
		}
		w := &reg.Workspace
		noWorkspace := isWorkspaceGone(w, gotAt)
		if !noWorkspace && (hasAgent(reg.ID) || !r.HasAgent(reg.ID, gotAt)) {
			return false
		}
		gone = append(gone, reg.ID)
		if _, again := named[w.ID]; !again && !noWorkspace && !set.ReadAt.IsZero() {
			named[w.ID] = struct{}{}
			emptied = append(emptied, *w) // the sync names it all the same
		}
		return true
	})
	set.Workspaces = append(slices.Clip(set.Workspaces), emptied...)
	return set, gone
}
