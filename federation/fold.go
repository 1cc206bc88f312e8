package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// foldIdle folds instances that are idle for FoldAfter into the totals, and
// forgets those that are for ForgetAfter. It does nothing if another replica
// leads.
func (f *Federation) foldIdle(ctx context.Context, now time.Time) error {
	if !f.serves() {
		return nil
	}
	totals, err := f.foldIdleInTurn(ctx, now)
	if totals != nil {
		f.tell(ctx, totals.id, totals.version)
	}
	return err
}

// foldIdleInTurn returns the new totals, nil if nothing was folded. It decides
// again if an instance was not idle by the newest that is stored.
func (f *Federation) foldIdleInTurn(ctx context.Context, now time.Time) (totals *instance, err error) {
	if err := f.takeTurn(ctx); err != nil {
		return nil, err
	}
	defer f.endTurn()
	for range decisions {
		var idle []*instance
		forgotten := f.overdue(now)
		for _, i := range f.gone() {
			switch age := now.Sub(i.aliveAt); {
			case i.folded && age >= f.opts.ForgetAfter:
				forgotten = append(forgotten, i)
			case !i.folded && age >= f.opts.FoldAfter:
				idle = append(idle, i)
			}
		}
		if len(idle)+len(forgotten) == 0 {
			return nil, nil
		}
		totals, err = f.fold(ctx, now, idle, forgotten)
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

// makeRoom gives up the rows of the oldest instances that are gone, an eighth
// of MaxInstances: folded ones first, then the others, which are folded. The
// caller has the turn.
func (f *Federation) makeRoom(ctx context.Context, now time.Time) error {
	gone := f.gone()
	if len(gone) == 0 {
		return fmt.Errorf("%d instances are alive, which is the limit", f.opts.MaxInstances)
	}
	gone = gone[:min(len(gone), max(1, f.opts.MaxInstances/8))]
	var idle []*instance
	for _, i := range gone {
		if !i.folded {
			idle = append(idle, i)
		}
	}
	_, err := f.fold(ctx, now, idle, gone)
	return err
}

// gone returns the instances that are not alive, folded ones first, the oldest
// first.
func (f *Federation) gone() []*instance {
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

// fold adds what idle instances counted to the totals and deletes the rows of
// removed ones, in one transaction. Idle ones that are not removed keep their
// last values. What is served stays the same. The caller has the turn.
//
// The totals are written anew even if nothing is added: by their version the
// others know that there was a fold, see readNewer.
func (f *Federation) fold(ctx context.Context, now time.Time, idle, removed []*instance) (totals *instance, _ error) {
	f.mu.Lock()
	totals, types := f.instances[agent.Instance{}], f.types // a map that is replaced, never changed
	f.mu.Unlock()
	if totals == nil {
		totals = &instance{version: f.replacedVersion(agent.Instance{})}
	}
	aside, err := f.setAside(ctx, now)
	if err != nil {
		return nil, err
	}
	counted := make([]*instance, len(idle))
	for i := range idle {
		counted[i] = idle[i].only(types)
	}
	totals = f.merges.foldInto(totals.only(types), counted)
	next := []*instance{totals}
	for i := range idle {
		if !slices.Contains(removed, idle[i]) {
			next = append(next, f.merges.foldInstance(counted[i]))
		}
	}
	rows := make([]agent.PushRow, len(next))
	for i := range next {
		if rows[i], err = f.codec.encode(next[i]); err != nil {
			return nil, err
		}
	}
	rows = append(rows, aside...)
	gone := make([]agent.PushRow, len(removed))
	for i := range removed {
		gone[i] = agent.PushRow{Instance: removed[i].id, Version: removed[i].version}
	}
	bounded, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	if err := f.noteStored(ctx, f.store.FoldPushes(bounded, rows, gone)); err != nil {
		return nil, fmt.Errorf("fold pushes: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range removed {
		delete(f.instances, removed[i].id)
		delete(f.unreadable, removed[i].id)
	}
	for _, i := range next {
		i.version++
		delete(f.unreadable, i.id)
		f.instances[i.id] = i
	}
	f.metrics.folded.Add(float64(len(idle)))
	f.rebuildLocked(now, f.settleLocked())
	return totals, nil
}
