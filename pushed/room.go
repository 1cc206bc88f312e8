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

// spareParts of a limit are freed when room is made, one of them, so that it is
// not made at each push.
const spareParts = 16

// makeRoom gives up the rows of the oldest instances that are gone, an eighth
// of MaxInstances: folded ones first, then the others, which are folded. The
// caller has the turn.
func (f *Families) makeRoom(ctx context.Context, now time.Time) error {
	gone := f.gone()
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

// excess returns by how much all lines exceed MaxTotalSeries with next in the
// place of what is held of its instance.
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

// makeSeriesRoom folds the oldest instances that are gone, and gives up their rows,
// until there is room for next, and has the totals forget the oldest of what
// nobody pushes if that is not enough. It reports whether anything changed. The
// caller has the turn.
func (f *Families) makeSeriesRoom(ctx context.Context, now time.Time, next *instance, excess int) (bool, error) {
	var gone []*instance
	freed := 0
	for _, i := range f.gone() {
		if i.id != next.id && freed < excess+f.opts.MaxTotalSeries/spareParts {
			gone, freed = append(gone, i), freed+i.lines
		}
	}
	f.mu.Lock()
	totals := f.instances[agent.Instance{}]
	f.mu.Unlock()
	held := 0
	if totals != nil {
		held = totals.lines
	}
	// What all but the totals leave to them.
	most := max(1, held+freed-excess)
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

// aliveSeries returns which series instances have that are alive, that which is
// pushed included, by family and labels.
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

// spill parts an instance, where its newest snapshot has no room, into what that
// has too and the counts that it does not have any more, which go to the totals.
// nil: there are none. If such a series comes back it is taken for one that began
// anew.
func (i *instance) spill(decoded []*decodedFamily) (kept, spilled *instance) {
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
