package pushed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// foldIdle folds instances that are idle for FoldAfter into the totals, and forgets
// those that are idle for ForgetAfter. It does nothing if another replica leads.
func (f *Families) foldIdle(ctx context.Context, now time.Time) error {
	if !f.serves() {
		return nil
	}
	totals, err := f.foldIdleWriting(ctx, now)
	if totals != nil {
		f.publishStored(ctx, totals.id, totals.version)
	}
	return err
}

// foldIdleWriting acquires writing and returns the new totals; nil if nothing was
// folded. It decides again if an instance was not idle by its newest row.
func (f *Families) foldIdleWriting(ctx context.Context, now time.Time) (totals *instance, err error) {
	if err := f.acquireWriting(ctx); err != nil {
		return nil, err
	}
	defer f.releaseWriting()
	for range decisions {
		var idle []*instance
		forgotten := f.overdue(now)
		for _, i := range f.goneInstances() {
			switch age := now.Sub(i.aliveAt); {
			case i.folded && age >= f.opts.Load().ForgetAfter:
				forgotten = append(forgotten, i)
			case !i.folded && age >= f.opts.Load().FoldAfter:
				idle = append(idle, i)
			}
		}
		if len(idle)+len(forgotten) == 0 {
			return nil, nil
		}
		totals, err = f.fold(ctx, now, folding{idle: idle, removed: forgotten})
		if !errors.Is(err, agent.ErrOutdated) {
			break
		}
		f.metrics.outdated.Inc()
		if err := f.catchUp(ctx, now); err != nil {
			return nil, err
		}
	}
	return totals, err
}

// goneInstances returns the instances that are not alive: folded ones first, then
// by age, the oldest first.
func (f *Families) goneInstances() []*instance {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*instance
	for id, i := range f.instances {
		if id != (agent.Instance{}) && !i.live {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b *instance) int {
		if a.folded != b.folded {
			if a.folded {
				return -1
			}
			return 1
		}
		return compareAge(a, b)
	})
	return out
}

// folding is one transaction.
type folding struct {
	// idle instances become part of the totals. Those that are not removed keep
	// their last values.
	idle, removed []*instance
	// pushed is stored too, with a row of its own, if it is not nil; spilled is
	// what it gives to the totals.
	pushed, spilled *instance
	// most are the lines that the totals may have if that can be; 0: any number.
	most int
}

// fold adds what instances counted to the totals and deletes the rows of removed
// ones. What is served stays the same, but for what is pushed. The caller holds
// writing.
//
// The totals are written again even if nothing is added. Their version says to the
// other replicas that there was a fold, see readNewer.
func (f *Families) fold(ctx context.Context, now time.Time, what folding) (totals *instance, _ error) {
	f.mu.Lock()
	totals, types := f.instances[agent.Instance{}], f.types // a map that is replaced, never changed
	f.mu.Unlock()
	if totals == nil {
		totals = &instance{version: f.replacedVersion(agent.Instance{})}
	}
	rows, err := f.copyUnreadableTotals(ctx, now)
	if err != nil {
		return nil, err
	}
	counted := make([]*instance, len(what.idle))
	for i := range what.idle {
		counted[i] = what.idle[i].ofTypes(types)
	}
	added := counted
	if what.spilled != nil {
		added = append(slices.Clone(counted), what.spilled)
	}
	totals, forgotten := f.trim(f.foldInto(totals.ofTypes(types), added), what)
	next := []*instance{totals}
	for i := range what.idle {
		if !slices.Contains(what.removed, what.idle[i]) {
			next = append(next, counted[i].fold())
		}
	}
	if what.pushed != nil {
		next = append(next, what.pushed)
	}
	for _, i := range next {
		row, err := f.encode(i)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	gone := make([]agent.PushRow, len(what.removed))
	ids := make([]agent.Instance, 0, len(what.removed))
	f.mu.Lock()
	for i, r := range what.removed {
		gone[i] = agent.PushRow{Instance: r.id, Version: r.version}
		if f.instances[r.id] != nil {
			ids = append(ids, r.id)
		}
	}
	f.mu.Unlock()
	bounded, cancel := context.WithTimeout(ctx, f.opts.Load().StoreTimeout)
	defer cancel()
	if err := f.recordWrite(ctx, f.store.FoldPushes(bounded, rows, gone)); err != nil {
		return nil, fmt.Errorf("merge pushes into totals: %w", err)
	}
	f.metrics.folded.Add(float64(len(what.idle)))
	f.metrics.forgotten.Add(float64(forgotten))
	if forgotten > 0 {
		f.log.WarnContext(ctx, "series of the totals are forgotten to make room", "series", forgotten)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range what.removed {
		delete(f.unreadable, r.id)
	}
	for _, i := range next {
		i.version++
	}
	f.replaceLocked(now, next, ids)
	return totals, nil
}

// foldInto returns totals with all that the instances counted added.
func (f *Families) foldInto(totals *instance, folded []*instance) *instance {
	out := &instance{version: totals.version}
	contributions := make(map[string][]family.Contribution)
	for _, i := range append([]*instance{totals}, folded...) {
		if i.updatedAt.After(out.updatedAt) {
			out.updatedAt = i.updatedAt
		}
		if i.folded {
			continue
		}
		for name, fam := range i.families {
			if fam.Cumulative() {
				contributions[name] = append(contributions[name], family.Contribution{Contributor: i.contributor(), Family: fam})
			}
		}
	}
	families := make(family.Set, len(contributions))
	for name, all := range contributions {
		families[name] = f.policy.Fold(all)
	}
	return out.withFamilies(families)
}
