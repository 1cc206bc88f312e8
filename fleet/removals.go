package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/removals"
)

// removalsWait is longer than the store takes to answer. Its ages are as of some moment
// of that time.
const removalsWait = time.Minute

// scope limits what a sync deregisters: what was last named at revision or before, and
// before readAt, unless that is zero.
type scope struct {
	revision uint64
	readAt   time.Time
	force    bool
}

func (s *scope) covers(n *naming) bool {
	return n.revision <= s.revision && (s.readAt.IsZero() || n.at.Before(s.readAt))
}

// kept returns the agents and workspaces that a sync keeps, as it says so or has refused
// registrations of them. all is true if one of these names neither.
func (p *plan) kept() (ids map[agent.ID]struct{}, all bool) {
	ids = make(map[agent.ID]struct{}, len(p.refused)+len(p.keptWorkspaces))
	for _, id := range p.keptWorkspaces {
		ids[id] = struct{}{}
	}
	for i := range p.refused {
		id := cmp.Or(p.refused[i].Agent, p.refused[i].Workspace)
		ids[id] = struct{}{}
		all = all || id == uuid.Nil
	}
	return ids, all
}

// planRemovals deregisters the agents and workspaces that a sync did not name.
func (p *plan) planRemovals(r *registry, s scope) error {
	kept, all := p.kept()
	if all {
		return nil
	}
	removed := p.removed()
	for _, e := range r.order {
		id := e.id
		_, named := p.named[id]
		_, isRemoved := removed[id]
		_, isKept := kept[id]
		_, inKept := kept[e.reg.Load().Workspace.ID]
		if !named && !isRemoved && !isKept && !inKept && s.covers(e.named) {
			p.deregistered = append(p.deregistered, id)
			delete(p.regs, id)
		}
	}
	if n, of := len(p.deregistered), r.agents.Len(); 2*n > of && !s.force {
		return fmt.Errorf("%w: %d of %d", ErrNeedsForce, n, of)
	}
	removed = p.removed()
	for w := range r.workspaces.All() {
		id := w.reg.Load().ID
		_, named := p.workspaces[id]
		if _, isKept := kept[id]; named || isKept || !s.covers(w.named) {
			continue
		}
		stays := slices.ContainsFunc(w.agents, func(e *entry) bool { _, isRemoved := removed[e.id]; return !isRemoved })
		if !stays {
			p.change.RemovedWorkspaces = append(p.change.RemovedWorkspaces, id)
		}
	}
	return nil
}

// planDeregistration plans the removal of agents and workspaces. Unknown ids are no
// error.
func planDeregistration(r *registry, agents, workspaces []agent.ID) *plan {
	p := &plan{}
	seen := make(map[agent.ID]struct{}, len(agents))
	remove := func(id agent.ID) {
		if _, twice := seen[id]; twice || r.agents.Get(id) == nil {
			return
		}
		seen[id] = struct{}{}
		p.deregistered = append(p.deregistered, id)
	}
	for _, id := range agents {
		remove(id)
	}
	seenWorkspaces := make(map[agent.ID]struct{}, len(workspaces))
	for _, id := range workspaces {
		w := r.workspaces.Get(id)
		if _, twice := seenWorkspaces[id]; twice || w == nil {
			continue
		}
		seenWorkspaces[id] = struct{}{}
		p.change.RemovedWorkspaces = append(p.change.RemovedWorkspaces, id)
		for _, e := range w.agents {
			remove(e.id)
		}
	}
	p.change.RemovedAgents = slices.Clone(p.deregistered)
	return p
}

// withoutRemoved returns the set without what was removed after its sender got it, and is
// not registered now. gone are the agents of these. A set without times is returned as it
// is. The caller holds changeSem.
func (f *Fleet) withoutRemoved(ctx context.Context, r *registry, set Set) (left Set, gone []agent.ID, _ error) {
	oldest := set.ReadAt
	for _, at := range set.GotAt {
		if oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	if oldest.IsZero() {
		return set, nil, nil
	}
	list, err := f.store.Removals(ctx, time.Since(oldest)+removalsWait)
	if err != nil {
		return set, nil, fmt.Errorf("read removals: %w", err)
	}
	if len(list) == 0 {
		return set, nil, nil
	}
	removed := removals.Of(list, time.Now()) // rather too late: see removalsWait
	left, gone = removed.From(set, func(id agent.ID) bool { return r.agents.Get(id) != nil }, func(id agent.ID) bool { return r.workspaces.Get(id) != nil })
	return left, gone, nil
}
