package plan

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/sets"
)

// ErrNeedsForce is wrapped when a sync would deregister more than half of all agents
// without force.
var ErrNeedsForce = errors.New("more than half of all agents would be deregistered")

// Earlier iterates over what was named before a sync began, and not since. The sync
// deregisters what of that its set does not name.
type Earlier struct {
	Agents     iter.Seq2[agent.ID, *kept.Registration] // ordered by id
	Workspaces iter.Seq[*kept.Workspace]
}

// Sync decides as Register does, and deregisters what the set does not name. Errors:
// ErrNeedsForce, and those of Register.
func Sync(r Registered, set sets.Set, earlier Earlier, force bool, limits capacity.Limits) (*Plan, error) {
	return decide(r, set, limits, func(p *Plan) error { return p.removeUnnamed(r, set.KeptWorkspaces, earlier, force) })
}

// removeUnnamed deregisters the agents and workspaces that a sync did not name.
func (p *Plan) removeUnnamed(r Registered, keptWorkspaces []agent.ID, earlier Earlier, force bool) error {
	stay, all := p.stay(keptWorkspaces)
	if all {
		return nil
	}
	removed := p.removed()
	for id, reg := range earlier.Agents {
		_, named := p.Named[id]
		_, isRemoved := removed[id]
		_, stays := stay[id]
		_, inStaying := stay[reg.Workspace.ID]
		if !named && !isRemoved && !stays && !inStaying {
			p.Deregistered = append(p.Deregistered, id)
			delete(p.Agents, id)
		}
	}
	if n, of := len(p.Deregistered), r.Use().Agents; 2*n > of && !force {
		return fmt.Errorf("%w: %d of %d", ErrNeedsForce, n, of)
	}
	removed = p.removed()
	for w := range earlier.Workspaces {
		_, named := p.Workspaces[w.ID]
		if _, stays := stay[w.ID]; !named && !stays && isEmptied(r, w.ID, removed) {
			p.Change.RemovedWorkspaces = append(p.Change.RemovedWorkspaces, w.ID)
		}
	}
	return nil
}

// stay returns the agents and workspaces that a sync keeps, as it says so or has refused
// registrations of them. all is true if one of these names neither.
func (p *Plan) stay(keptWorkspaces []agent.ID) (ids map[agent.ID]struct{}, all bool) {
	ids = make(map[agent.ID]struct{}, len(p.Refused)+len(keptWorkspaces))
	for _, id := range keptWorkspaces {
		ids[id] = struct{}{}
	}
	for i := range p.Refused {
		id := cmp.Or(p.Refused[i].Agent, p.Refused[i].Workspace)
		ids[id] = struct{}{}
		all = all || id == uuid.Nil
	}
	return ids, all
}

// isEmptied returns whether a workspace has no agents but those that are removed.
func isEmptied(r Registered, workspace agent.ID, removed map[agent.ID]struct{}) bool {
	for id := range r.AgentsIn(workspace) {
		if _, isRemoved := removed[id]; !isRemoved {
			return false
		}
	}
	return true
}

// Deregister decides the removal of agents, and of workspaces with their agents. Unknown
// ids are no error.
func Deregister(r Registered, agents, workspaces []agent.ID) *Plan {
	p := &Plan{}
	seen := make(map[agent.ID]struct{}, len(agents))
	remove := func(id agent.ID) {
		if _, twice := seen[id]; twice || r.Agent(id) == nil {
			return
		}
		seen[id] = struct{}{}
		p.Deregistered = append(p.Deregistered, id)
	}
	for _, id := range agents {
		remove(id)
	}
	seenWorkspaces := make(map[agent.ID]struct{}, len(workspaces))
	for _, workspace := range workspaces {
		if _, twice := seenWorkspaces[workspace]; twice || r.Workspace(workspace) == nil {
			continue
		}
		seenWorkspaces[workspace] = struct{}{}
		p.Change.RemovedWorkspaces = append(p.Change.RemovedWorkspaces, workspace)
		for id := range r.AgentsIn(workspace) {
			remove(id)
		}
	}
	p.Change.RemovedAgents = slices.Clone(p.Deregistered)
	return p
}
