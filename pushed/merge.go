package pushed

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/histogram"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// merges are the ways of merging that an operator set, by family.
type merges map[string]metrics.Merge

func (m merges) of(name string, t metrics.Type) metrics.Merge {
	if how, ok := m[name]; ok {
		return how
	}
	how, _ := metrics.MergeOf(name, t)
	return how
}

// isWhole reports whether each instance has the whole of a cumulative family,
// read from the database: the largest is right.
func (m merges) isWhole(name string, t metrics.Type) bool {
	return cumulative(t) && m.of(name, t) != metrics.MergeSum
}

// contribution is what one instance has of a family.
type contribution struct {
	instance *instance
	family   *family
}

// mergeLocked makes one family of several: counters, histograms and summaries of
// all, gauges and untyped series of those that are live. It returns nil if
// nothing is left. The help text is the newest.
func (f *Families) mergeLocked(name string) *family {
	all := f.contributionsLocked(name)
	if len(all) == 0 {
		delete(f.floors, name)
		return nil
	}
	slices.SortFunc(all, func(a, b contribution) int { return compareAge(a.instance, b.instance) })
	out := &family{Name: name, Type: all[0].family.Type}
	for _, c := range all {
		out.Help = cmp.Or(c.family.Help, out.Help)
	}
	switch how := f.merges.of(name, out.Type); {
	case cumulative(out.Type):
		out.Series = sumSeries(all, how != metrics.MergeSum, f.floors[name])
		f.updateFloorsLocked(out)
		if out.Type == metrics.Summary {
			addQuantiles(out.Series, all)
		}
		if hidden := refusedOnly(all); hidden != nil {
			out.Series = slices.DeleteFunc(out.Series, func(s series) bool { return hidden[s.Labels] })
		}
	case how == metrics.MergeSticky:
		out.Series = longestPresent(all).Series
	default:
		out.Series = combineGauges(all, how)
	}
	if len(out.Series) == 0 {
		return nil
	}
	return out
}

// contributionsLocked returns the contributions to a family. A folded instance
// contributes nothing.
func (f *Families) contributionsLocked(name string) []contribution {
	var all []contribution
	for _, i := range f.instances {
		fam := i.families[name]
		if fam == nil || !fam.isOf(f.types) || i.folded || !i.live && !cumulative(fam.Type) {
			continue
		}
		all = append(all, contribution{i, fam})
	}
	return all
}

// compareAge puts the instance with the newest snapshot last.
func compareAge(a, b *instance) int {
	return cmp.Or(a.updatedAt.Compare(b.updatedAt), bytes.Compare(a.id[:], b.id[:]))
}

// contributedSeries is a series of one instance.
type contributedSeries struct {
	*series
	instance *instance
}

// groupByLabels returns all series by their labels, sorted by these.
func groupByLabels(all []contribution) [][]contributedSeries {
	index := make(map[string]int, len(all[0].family.Series))
	var out [][]contributedSeries
	for _, c := range all {
		for i := range c.family.Series {
			s := &c.family.Series[i]
			at, ok := index[s.Labels]
			if !ok {
				at = len(out)
				index[s.Labels] = at
				out = append(out, nil)
			}
			out[at] = append(out[at], contributedSeries{s, c.instance})
		}
	}
	slices.SortFunc(out, func(a, b []contributedSeries) int { return strings.Compare(a[0].Labels, b[0].Labels) })
	return out
}

// sumSeries adds up cumulative series. What is summed is in Base and BaseHist
// alone, so that a sum can be added to again. floors are added too. If each
// instance has the whole, the largest is taken, in Value or Hist.
func sumSeries(all []contribution, whole bool, floors map[string]*distribution) []series {
	groups := groupByLabels(all)
	out := make([]series, len(groups))
	var parts []*distribution
	for i, group := range groups {
		sum := &out[i]
		sum.Labels = group[0].Labels
		parts = parts[:0]
		for _, s := range group {
			sum.Created = earliest(sum.Created, s.Created)
			if sum.Changed = max(sum.Changed, s.Changed); s.instance.id != (agent.Instance{}) {
				sum.Changed = max(sum.Changed, s.instance.updatedAt.UnixNano())
			}
			if s.Exemplar != nil && (sum.Exemplar == nil || s.Exemplar.Time >= sum.Exemplar.Time) {
				sum.Exemplar = s.Exemplar
			}
			if whole {
				value, hist := s.whole(s.instance)
				sum.Value, sum.Hist = max(sum.Value, value), larger(sum.Hist, hist)
				continue
			}
			for _, d := range []*distribution{s.BaseHist, s.Hist} {
				if d != nil {
					parts = append(parts, d)
				}
			}
			sum.Base = sum.Base.addAll(s.Base).add(s.Value)
		}
		if floor := floors[sum.Labels]; floor != nil && len(parts) > 0 {
			parts = append(parts, floor)
		}
		if len(parts) > 0 {
			sum.Base, sum.BaseHist = nil, sumDistributions(parts)
		}
	}
	return out
}

// whole returns what an instance counted of a series of which each has the whole.
// What the totals have may have been summed, before the operator set another way.
func (s *series) whole(of *instance) (float64, *distribution) {
	if of.id != (agent.Instance{}) {
		return s.Value, s.Hist
	}
	return s.Base.plus(s.Value).value(), s.merged()
}

// refusedOnly returns the labels of the series that are pushed by instances that
// are alive, and by all of these in a form that is refused; nil: there are none.
func refusedOnly(all []contribution) map[string]bool {
	var refused map[string]bool
	for _, stored := range [...]bool{false, true} {
		for _, c := range all {
			if !c.instance.live {
				continue
			}
			for i := range c.family.Series {
				switch s := &c.family.Series[i]; {
				case s.Refused && !stored:
					if refused == nil {
						refused = make(map[string]bool)
					}
					refused[s.Labels] = true
				case !s.Refused && stored:
					delete(refused, s.Labels)
				}
			}
		}
		if refused == nil {
			break
		}
	}
	return refused
}

// addQuantiles gives each merged summary the quantiles of the only live instance
// that has it.
func addQuantiles(merged []series, all []contribution) {
	only := make(map[string]*series) // nil: several have it
	for _, c := range all {
		if !c.instance.live {
			continue
		}
		for i := range c.family.Series {
			s := &c.family.Series[i]
			if _, several := only[s.Labels]; several {
				s = nil
			}
			only[c.family.Series[i].Labels] = s
		}
	}
	for i := range merged {
		if s := only[merged[i].Labels]; s != nil {
			merged[i].Quantiles = s.Quantiles
		}
	}
}

// updateFloorsLocked records how coarse the native buckets of a merged family are,
// as distributions without counts. It forgets those of series that the family has
// no more. Without them the zero bucket could become narrower, when an instance
// widens its own and loses the bucket for which the sum's was widened. Floors end
// with the process, and other replicas do not have them. So a restart or another
// leader can make a zero bucket narrower where instances disagree. Prometheus takes
// that for a reset.
func (f *Families) updateFloorsLocked(merged *family) {
	before := f.floors[merged.Name]
	var kept map[string]*distribution
	for i := range merged.Series {
		s := &merged.Series[i]
		if s.BaseHist == nil || s.BaseHist.Native == nil {
			continue
		}
		n, floor := s.BaseHist.Native, before[s.Labels]
		if floor == nil || floor.Native.Schema != n.Schema || floor.Native.ZeroThreshold != n.ZeroThreshold || len(floor.Bounds) != len(s.BaseHist.Bounds) {
			floor = &distribution{
				Bounds: s.BaseHist.Bounds,
				Counts: make([]float64, len(s.BaseHist.Bounds)),
				Native: &histogram.FloatHistogram{Schema: n.Schema, ZeroThreshold: n.ZeroThreshold},
			}
		}
		if kept == nil {
			kept = make(map[string]*distribution, max(1, len(before)))
		}
		kept[s.Labels] = floor
	}
	if delete(f.floors, merged.Name); len(kept) > 0 {
		f.floors[merged.Name] = kept
	}
}

// combineGauges makes one value of each series' current ones.
func combineGauges(all []contribution, how metrics.Merge) []series {
	if how == metrics.MergeStickySeries { // of two that had it at once all replicas choose the same
		slices.SortFunc(all, func(a, b contribution) int { return bytes.Compare(a.instance.id[:], b.instance.id[:]) })
	}
	groups := groupByLabels(all)
	out := make([]series, len(groups))
	for i, group := range groups {
		best := *group[0].series
		if combines(how) && len(group) > 1 {
			best.Value = combine(how, group)
			out[i] = best
			continue
		}
		for _, s := range group[1:] {
			switch how {
			case metrics.MergeNewest: // of several the instance with the newest snapshot
				if s.Changed >= best.Changed {
					best = *s.series
				}
			default: // whichever had it first
				if s.Since < best.Since {
					best = *s.series
				}
			}
		}
		out[i] = best
	}
	return out
}

// combines reports whether gauges that merge that way become one of all, which
// no single one may spoil.
func combines(how metrics.Merge) bool {
	return how == metrics.MergeSum || how == metrics.MergeMax || how == metrics.MergeMin
}

// combine adds gauges, or takes the largest or the least. What is no number, or
// beyond all that is measured, does not count beside one that is; of several such
// alone it is the largest, or the least. The result does not depend on the order.
func combine(how metrics.Merge, group []contributedSeries) float64 {
	terms := make([]float64, 0, len(group))
	for _, s := range group {
		if isTerm(s.Value) {
			terms = append(terms, s.Value)
		}
	}
	alone := len(terms) == 0
	if alone {
		for _, s := range group {
			if !math.IsNaN(s.Value) {
				terms = append(terms, s.Value)
			}
		}
	}
	switch {
	case len(terms) == 0:
		return math.NaN()
	case how == metrics.MergeMin:
		return slices.Min(terms)
	case how == metrics.MergeMax || alone:
		return slices.Max(terms)
	}
	var sum exact
	for _, v := range terms {
		sum = sum.add(v)
	}
	return sum.value()
}

// longestPresent returns the family of the instance that has had it longest without
// a break. So it is served from there while others come and go, whichever replica
// serves it.
func longestPresent(all []contribution) *family {
	return slices.MinFunc(all, func(a, b contribution) int {
		return cmp.Or(cmp.Compare(a.family.Since, b.family.Since), bytes.Compare(a.instance.id[:], b.instance.id[:]))
	}).family
}

// foldInto returns totals with all that the instances counted added.
func (m merges) foldInto(totals *instance, folded []*instance) *instance {
	out := &instance{families: make(map[string]*family), version: totals.version}
	members := append([]*instance{totals}, folded...)
	slices.SortFunc(members, compareAge)
	contributions := make(map[string][]contribution)
	for _, i := range members {
		out.updatedAt = latest(out.updatedAt, i.updatedAt)
		for name, fam := range i.families {
			if cumulative(fam.Type) && !i.folded {
				contributions[name] = append(contributions[name], contribution{i, fam})
			}
		}
	}
	for name, all := range contributions {
		newest := all[len(all)-1].family
		out.families[name] = &family{
			Name: name, Type: newest.Type, Help: newest.Help, Series: sumSeries(all, m.isWhole(name, newest.Type), nil),
		}
	}
	out.countLines()
	return out
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
