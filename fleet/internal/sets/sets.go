// Package sets has sets of registrations, as coderd names them.
package sets

import (
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/ordered"
)

// Set is a set of registrations. Workspaces lists those without agents. The
// workspaces of Agents are implied.
type Set struct {
	Agents     []agent.Registration
	Workspaces []agent.Workspace
	// Refused were refused before. A sync deregisters nothing that they name; of one
	// that names nothing it deregisters nothing at all.
	Refused []agent.RegistrationRefusal
	// KeptWorkspaces stay with all their agents, whatever a sync names.
	KeptWorkspaces []agent.ID
	// ReadAt is when reading the set of a sync began. What was registered at that time or
	// later is not deregistered, and what was deregistered later is not registered. Zero:
	// when the sync began.
	ReadAt time.Time
	// GotAt is when the sender got registrations of Agents that it has kept. An agent that
	// was removed later is not registered. Absent: the registration is current.
	GotAt map[agent.ID]time.Time
}

// WithoutRepeated refuses agents and workspaces that come again.
func (set Set) WithoutRepeated() Set {
	seen := make(map[agent.ID]struct{}, len(set.Agents)+len(set.Workspaces))
	isAgain := func(id agent.ID, refusal agent.RegistrationRefusal) bool {
		_, again := seen[id]
		seen[id] = struct{}{}
		if again {
			refusal.Field = "id"
			set.Refused = append(set.Refused, refusal)
		}
		return again
	}
	set.Agents = ordered.Drop(set.Agents, func(reg *agent.Registration) bool {
		return isAgain(reg.ID, agent.RegistrationRefusal{Agent: reg.ID, Workspace: reg.Workspace.ID, Problem: "want each agent once"})
	})
	clear(seen)
	set.Workspaces = ordered.Drop(set.Workspaces, func(w *agent.Workspace) bool {
		return isAgain(w.ID, agent.RegistrationRefusal{Workspace: w.ID, Problem: "want each workspace once"})
	})
	return set
}

// Sorted sorts the lists that are compared and searched later. It owns the set.
func (set Set) Sorted() Set {
	for i := range set.Agents {
		keys := set.Agents[i].MetadataKeys
		slices.Sort(keys)
		set.Agents[i].MetadataKeys = slices.Compact(keys)
	}
	return set
}
