package family

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/coder/agentstatsd/metrics"
)

// Set is the families of one instance, or of the totals, by name. Its methods do
// not change it. Sets share families, which are never changed.
type Set map[string]*Family

// Lines returns what the set counts as against limits on series: each line in a
// scrape, and each KiB of labels.
func (s Set) Lines() int {
	n := 0
	for _, f := range s {
		n += f.lines()
	}
	return n
}

// Names returns the names of all families, in any order.
func (s Set) Names() []string { return slices.Collect(maps.Keys(s)) }

// OfTypes returns the families that have the types of their names. It is s if all
// have.
func (s Set) OfTypes(types Types) Set {
	out := maps.Clone(s)
	maps.DeleteFunc(out, func(_ string, f *Family) bool { return !types.Include(f) })
	if len(out) == len(s) {
		return s
	}
	return out
}

// Mortal returns the names of families that change when their instance is gone:
// gauges, summaries for their quantiles, and what was refused of it.
func (s Set) Mortal() []string {
	var out []string
	for name, f := range s {
		if !f.Cumulative() || f.Type == metrics.Summary || slices.ContainsFunc(f.Series, func(s Series) bool { return s.Refused }) {
			out = append(out, name)
		}
	}
	return out
}

// Fold returns the cumulative families without their contribution, as they are once
// the totals include all that they counted. Their last values are subtracted from
// their sums, so that only the increase is added if the instance comes back.
func (s Set) Fold() Set {
	out := make(Set, len(s))
	for name, f := range s {
		if f.Cumulative() {
			out[name] = f.fold()
		}
	}
	return out
}

// SpareParts divides a limit on lines: one part is freed beside the room that is
// needed, so that not every push makes room.
const SpareParts = 16

// Trim returns totals with at most that many lines, less one of SpareParts, and how many series were
// forgotten for it. The oldest series go first. Those that are in one of alive stay,
// whatever the limit: without them the sum that is served would fall.
func (s Set) Trim(most int, alive []Set) (_ Set, forgotten int) {
	type candidate struct {
		family string
		*Series
	}
	known := seriesOf(alive)
	var oldest []candidate
	for name, f := range s {
		for i := range f.Series {
			if c := &f.Series[i]; !known[name][c.Labels] {
				oldest = append(oldest, candidate{name, c})
			}
		}
	}
	slices.SortFunc(oldest, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.Changed, b.Changed), cmp.Compare(a.family, b.family), cmp.Compare(a.Labels, b.Labels))
	})
	drop := make(map[*Series]bool)
	for lines := s.Lines(); len(oldest) > 0 && lines > most-most/SpareParts; oldest = oldest[1:] {
		drop[oldest[0].Series] = true
		lines -= oldest[0].lines()
	}
	out := make(Set, len(s))
	for name, f := range s {
		kept := *f
		kept.Series = nil
		for i := range f.Series {
			if !drop[&f.Series[i]] {
				kept.Series = append(kept.Series, f.Series[i])
			}
		}
		if len(kept.Series) > 0 {
			out[name] = &kept
		}
	}
	return out, len(drop)
}

// seriesOf returns the cumulative series of all sets, by family and labels.
func seriesOf(sets []Set) map[string]map[string]bool {
	out := make(map[string]map[string]bool)
	for _, s := range sets {
		for name, f := range s {
			if !f.Cumulative() {
				continue
			}
			if out[name] == nil {
				out[name] = make(map[string]bool, len(f.Series))
			}
			for i := range f.Series {
				out[name][f.Series[i].Labels] = true
			}
		}
	}
	return out
}

// Split splits the families of an instance whose newest snapshot has no room.
// spilled are the counts that the snapshot does not have, which go to the totals;
// nil: there are none. kept is the rest. If such a series comes back, it counts from
// 0 again. A family that is refused as a whole, or has another type now, spills
// nothing.
func (s Set) Split(newest Snapshot) (kept, spilled Set) {
	pushed := make(map[string]*Decoded, len(newest))
	for _, d := range newest {
		if _, twice := pushed[d.Name]; !twice {
			pushed[d.Name] = d
		}
	}
	kept, spilled = maps.Clone(s), make(Set)
	for name, f := range s {
		d := pushed[name]
		if !f.Cumulative() || d != nil && (d.Family == nil || d.Family.Type != f.Type) {
			continue
		}
		stays := make(map[string]bool)
		if d != nil {
			maps.Copy(stays, d.Family.refusedLabels)
			for i := range d.Family.Series {
				stays[d.Family.Series[i].Labels] = true
			}
		}
		goes, remains := *f, *f
		goes.Series, remains.Series = nil, nil
		for _, one := range f.Series {
			if stays[one.Labels] {
				remains.Series = append(remains.Series, one)
			} else {
				goes.Series = append(goes.Series, one)
			}
		}
		if len(goes.Series) == 0 {
			continue
		}
		spilled[name] = &goes
		if delete(kept, name); len(remains.Series) > 0 {
			kept[name] = &remains
		}
	}
	if len(spilled) == 0 {
		return s, nil
	}
	return kept, spilled
}

var errNoFamily = errors.New("a family is missing")

// check returns an error if a decoded set is invalid. Only totals may have
// distributions in BaseHist alone.
func (s Set) check(isTotals bool) error {
	for name, f := range s {
		switch {
		case f.Name != name:
			return fmt.Errorf("family %q under the name %q", f.Name, name)
		case !slices.IsSortedFunc(f.Series, compareSeries):
			return fmt.Errorf("the series of %s are not sorted", name)
		}
		for i := range f.Series {
			one := &f.Series[i]
			if f.Type == metrics.Histogram || f.Type == metrics.Summary {
				if one.Hist == nil && (one.BaseHist == nil || !isTotals) {
					return fmt.Errorf("a series of the %v %s has no distribution", f.Type, name)
				}
			}
			for _, d := range []*Distribution{one.Hist, one.BaseHist} {
				if d != nil && len(d.Bounds) != len(d.Counts) {
					return fmt.Errorf("%s has %d bounds and %d counts", name, len(d.Bounds), len(d.Counts))
				}
			}
		}
	}
	return nil
}
