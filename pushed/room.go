package pushed

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// spareParts divides a limit: one part is freed beside the room that is needed, so
// that not every push makes room.
const spareParts = 16

// makeRoom removes the rows of the oldest gone instances, an eighth of
// MaxInstances: folded ones first, then the others, which it folds. The caller
// holds writing.
func (f *Families) makeRoom(ctx context.Context, now time.Time) error {
	gone := f.goneInstances()
	if len(gone) == 0 {
		return fmt.Errorf("%w: %d instances are alive, which is the limit (--max-coderd-instances)", agent.ErrNoRoom, f.opts.MaxInstances)
	}
	gone = gone[:min(len(gone), max(1, f.opts.MaxInstances/8))]
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
	lines := next.lines - f.opts.MaxTotalSeries
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
		if i.id != next.id && freed < excess+f.opts.MaxTotalSeries/spareParts {
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

// trim returns the totals with at most that many lines, and how many series were
// forgotten for it: the oldest of those that no instance has which is alive. What
// one has would fall without them.
func (f *Families) trim(totals *instance, what folding) (_ *instance, forgotten int) {
	if what.most == 0 || totals.lines <= what.most {
		return totals, 0
	}
	alive := f.aliveSeries(what)
	type candidate struct {
		family string
		*series
	}
	var oldest []candidate
	for name, fam := range totals.families {
		for i := range fam.Series {
			if s := &fam.Series[i]; !alive[name][s.Labels] {
				oldest = append(oldest, candidate{name, s})
			}
		}
	}
	slices.SortFunc(oldest, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.Changed, b.Changed), cmp.Compare(a.family, b.family), cmp.Compare(a.Labels, b.Labels))
	})
	drop := make(map[*series]bool)
	for lines := totals.lines; len(oldest) > 0 && lines > what.most-what.most/spareParts; oldest = oldest[1:] {
		drop[oldest[0].series] = true
		lines -= oldest[0].lines()
	}
	out := *totals
	out.families = make(map[string]*family, len(totals.families))
	for name, fam := range totals.families {
		kept := *fam
		kept.Series = nil
		for i := range fam.Series {
			if !drop[&fam.Series[i]] {
				kept.Series = append(kept.Series, fam.Series[i])
			}
		}
		if len(kept.Series) > 0 {
			out.families[name] = &kept
		}
	}
	out.countLines()
	return &out, len(drop)
}

// aliveSeries returns the series of live instances and of the pushed one, by family
// and labels.
func (f *Families) aliveSeries(what folding) map[string]map[string]bool {
	f.mu.Lock()
	alive := slices.Collect(maps.Values(f.instances))
	alive = slices.DeleteFunc(alive, func(i *instance) bool { return !i.live })
	f.mu.Unlock()
	if what.pushed != nil {
		alive = append(alive, what.pushed)
	}
	out := make(map[string]map[string]bool)
	for _, i := range alive {
		for name, fam := range i.families {
			if !cumulative(fam.Type) {
				continue
			}
			if out[name] == nil {
				out[name] = make(map[string]bool, len(fam.Series))
			}
			for j := range fam.Series {
				out[name][fam.Series[j].Labels] = true
			}
		}
	}
	return out
}

// splitAbsent splits an instance, if its newest snapshot has no room. spilled are
// the counts that the snapshot does not have, which go to the totals; nil: there
// are none. kept is the rest. If such a series comes back, it counts from 0 again.
func (i *instance) splitAbsent(decoded []*decodedFamily) (kept, spilled *instance) {
	pushed := make(map[string]*decodedFamily, len(decoded))
	for _, d := range decoded {
		if _, twice := pushed[d.name]; !twice {
			pushed[d.name] = d
		}
	}
	keptCopy, spilledCopy := *i, *i
	kept, spilled = &keptCopy, &spilledCopy
	kept.families, spilled.families = maps.Clone(i.families), make(map[string]*family)
	for name, fam := range i.families {
		d := pushed[name]
		if !cumulative(fam.Type) || d != nil && d.family == nil {
			continue
		}
		stays := make(map[string]bool)
		if d != nil {
			maps.Copy(stays, d.family.refusedLabels)
			for j := range d.family.Series {
				stays[d.family.Series[j].Labels] = true
			}
		}
		goes, remains := *fam, *fam
		goes.Series, remains.Series = nil, nil
		for _, s := range fam.Series {
			if stays[s.Labels] {
				remains.Series = append(remains.Series, s)
			} else {
				goes.Series = append(goes.Series, s)
			}
		}
		if len(goes.Series) == 0 {
			continue
		}
		spilled.families[name] = &goes
		if delete(kept.families, name); len(remains.Series) > 0 {
			kept.families[name] = &remains
		}
	}
	if len(spilled.families) == 0 {
		return i, nil
	}
	kept.countLines()
	spilled.countLines()
	return kept, spilled
}
