package federation

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// foldIdle folds instances that are idle for FoldAfter into the totals, and
// forgets those that are for ForgetAfter.
func (f *Federation) foldIdle(ctx context.Context, now time.Time) error {
	if err := f.takeTurn(ctx); err != nil {
		return err
	}
	defer f.endTurn()
	var idle, forgotten []*instance
	for _, i := range f.gone() {
		switch age := now.Sub(i.updatedAt); {
		case i.folded && age >= f.opts.ForgetAfter:
			forgotten = append(forgotten, i)
		case !i.folded && age >= f.opts.FoldAfter:
			idle = append(idle, i)
		}
	}
	return f.fold(ctx, now, idle, forgotten)
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
	return f.fold(ctx, now, idle, gone)
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
func (f *Federation) fold(ctx context.Context, now time.Time, idle, removed []*instance) error {
	if len(idle)+len(removed) == 0 {
		return nil
	}
	f.mu.Lock()
	totals := f.instances[agent.Instance{}]
	f.mu.Unlock()
	var next []*instance
	if len(idle) > 0 {
		if totals == nil {
			totals = &instance{}
		}
		next = append(next, foldInto(totals, idle))
	}
	for _, i := range idle {
		if !slices.Contains(removed, i) {
			next = append(next, i.fold())
		}
	}
	rows := make([]agent.PushRow, len(next))
	for i := range next {
		var err error
		if rows[i], err = f.codec.encode(next[i]); err != nil {
			return err
		}
	}
	ids := make([]agent.Instance, len(removed))
	for i := range removed {
		ids[i] = removed[i].id
	}
	bounded, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	if err := f.note(f.store.FoldPushes(bounded, rows, ids)); err != nil {
		return fmt.Errorf("fold pushes: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		delete(f.instances, id)
	}
	for _, i := range next {
		f.instances[i.id] = i
	}
	f.metrics.folded.Add(float64(len(idle)))
	f.rebuildLocked(now, nil)
	return nil
}
