package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/observations"
	"github.com/coder/agentstatsd/fleet/internal/removals"
	"github.com/coder/agentstatsd/fleet/internal/sets"
)

// Set is a set of registrations, as coderd names it.
type Set = sets.Set

// removalsWait is longer than the store takes to answer. Its ages are as of some moment
// of that time.
const removalsWait = time.Minute

// completed returns the set without agents and workspaces that come again or are gone, with
// what is known of agents of which it says nothing. gone are the agents that were removed
// after the sender got them. The caller holds changeSem.
func (f *Fleet) completed(ctx context.Context, r *registry, set Set) (_ Set, gone []agent.ID, _ error) {
	set, gone, err := f.withoutRemoved(ctx, r, set)
	if err != nil {
		return set, nil, err
	}
	set = set.WithoutRepeated()
	set.Agents = keepKnown(r, set.Agents)
	return set, gone, nil
}

// withoutRemoved returns the set without what was removed after its sender got it, and is
// not registered now. gone are the agents of these. A set without times is returned as it
// is.
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

// keepKnown returns the agents, with what is known of that of which they say nothing. Then
// they are copies: a repeated decision must not take it for what they said.
func keepKnown(r *registry, agents []agent.Registration) []agent.Registration {
	said := agents
	for i := range said {
		e := r.agents.Get(said[i].ID)
		if e == nil {
			continue
		}
		reg, known := said[i], e.reg.Load()
		reg.TokenHash = cmp.Or(reg.TokenHash, known.TokenHash)
		if len(reg.MetadataKeys) == 0 {
			reg.MetadataKeys = known.MetadataKeys()
		}
		if observed := known.Observed(); reg.Observed.At.After(observed.At) {
			e.mu.Lock()
			reg.Observed = observations.Keep(&observed, &reg.Observed, e.stateLocked(&agent.State{}), e.liveLocked() != nil || e.presence.remote, timeOf(e.history().endedAt))
			e.mu.Unlock()
		} else {
			reg.Observed = observed // Keep would, too
		}
		if reg.Equal(&said[i]) {
			continue
		}
		if &agents[0] == &said[0] {
			agents = slices.Clone(said)
		}
		agents[i] = reg
	}
	return agents
}
