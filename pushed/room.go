package pushed

import (
	"context"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// makeRoom removes the rows of the oldest gone instances, an eighth of
// MaxInstances: folded ones first, then the others, which it folds. The caller
// holds writing.
func (f *Families) makeRoom(ctx context.Context, now time.Time) error {
	gone := f.goneInstances()
	if len(gone) == 0 {
		return fmt.Errorf("%w: %d instances are alive, which is the limit (--max-coderd-instances)", agent.ErrNoRoom, f.opts.Load().MaxInstances)
	}
	gone = gone[:min(len(gone), max(1, f.opts.Load().MaxInstances/8))]
	_, err := f.fold(ctx, now, folding{idle: notFolded(gone), removed: gone})
	return err
}

func notFolded(gone []*instance) (out []*instance) {
	for _, i := range gone {
		if !i.folded {
			out = append(out, i)
		}
	}
	return out
}

// excess returns by how much all lines exceed MaxTotalSeries if next replaces its
// instance.
func (f *Families) excess(next *instance) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines := next.lines - f.opts.Load().MaxTotalSeries
	for id, i := range f.instances {
		if id != next.id {
			lines += i.lines
		}
	}
	return lines
}

// makeSeriesRoom folds the oldest gone instances and removes their rows until there
// is room for next. If that is not enough, the totals forget the oldest series that
// no live instance has. It reports whether anything changed. The caller holds
// writing.
func (f *Families) makeSeriesRoom(ctx context.Context, now time.Time, next *instance, excess int) (bool, error) {
	var gone []*instance
	freed := 0
	for _, i := range f.goneInstances() {
		if i.id != next.id && freed < excess+f.opts.Load().MaxTotalSeries/family.SpareParts {
			gone, freed = append(gone, i), freed+i.lines
		}
	}
	f.mu.Lock()
	totals := f.instances[agent.Instance{}]
	f.mu.Unlock()
	known := 0
	if totals != nil {
		known = totals.lines
	}
	// What all but the totals leave to them.
	most := max(1, known+freed-excess)
	if len(gone) == 0 {
		if totals == nil {
			return false, nil
		}
		if _, n := f.trim(totals, folding{pushed: next, most: most}); n == 0 {
			return false, nil
		}
	}
	_, err := f.fold(ctx, now, folding{idle: notFolded(gone), removed: gone, most: most})
	return err == nil, err
}

// trim returns the totals with at most what.most lines, and how many series were
// removed for it. It removes the oldest of those that no live instance has.
func (f *Families) trim(totals *instance, what folding) (_ *instance, forgotten int) {
	if what.most == 0 || totals.lines <= what.most {
		return totals, 0
	}
	var alive []family.Set
	f.mu.Lock()
	for _, i := range f.instances {
		if i.live {
			alive = append(alive, i.families)
		}
	}
	f.mu.Unlock()
	if what.pushed != nil {
		alive = append(alive, what.pushed.families)
	}
	families, forgotten := totals.families.Trim(what.most, alive)
	return totals.withFamilies(families), forgotten
}
