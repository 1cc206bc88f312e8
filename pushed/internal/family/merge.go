package family

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

// Policy is how families merge whose documented or guessed way is wrong, by name.
// nil: none is. Of counters, histograms and summaries all ways but metrics.MergeSum
// mean that each instance has the whole: the largest is right.
type Policy map[string]metrics.Merge

func (p Policy) of(name string, t metrics.Type) metrics.Merge {
	if how, ok := p[name]; ok {
		return how
	}
	how, _ := metrics.MergeOf(name, t)
	return how
}

// isWhole reports whether each instance has the whole of a cumulative family,
// read from the database: the largest is right.
func (p Policy) isWhole(name string, t metrics.Type) bool {
	return cumulative(t) && p.of(name, t) != metrics.MergeSum
}

// Contributor is an instance that contributes to a merge.
type Contributor struct {
	// Instance is zero for the totals.
	Instance agent.Instance
	// UpdatedAt is when its newest snapshot was received.
	UpdatedAt time.Time
	// Live means that its gauges are served.
	Live bool
}

func (c *Contributor) isTotals() bool { return c.Instance == agent.Instance{} }

// CompareAge is below 0 if the newest snapshot of c is older than that of o, and
// above 0 if it is newer. It is 0 only for one instance.
func (c Contributor) CompareAge(o Contributor) int {
	return cmp.Or(c.UpdatedAt.Compare(o.UpdatedAt), bytes.Compare(c.Instance[:], o.Instance[:]))
}

// Contribution is what one instance has of a family.
type Contribution struct {
	Contributor
	Family *Family
}

func sortByAge(all []Contribution) {
	slices.SortFunc(all, func(a, b Contribution) int { return a.CompareAge(b.Contributor) })
}

// Floors are what the native histograms of one family must not be finer than, by
// labels. Without them the zero bucket could become narrower, when an instance
// widens its own and loses the bucket for which the sum's was widened. Prometheus
// takes that for a reset.
type Floors map[string]*Distribution

// Merge makes one family of the instances' families of a name and a type. Counters,
// histograms and summaries are of all instances, gauges and untyped series of live
// ones. It returns nil if nothing is left. The help text is the newest.
//
// floors are those that the Merge before returned for the name. The ones that it
// returns are for the next, and have no series that the family lacks. Neither is
// changed. all is sorted anew.
func (p Policy) Merge(all []Contribution, floors Floors) (*Family, Floors) {
	all = slices.DeleteFunc(all, func(c Contribution) bool { return !c.Live && !c.Family.Cumulative() })
	if passed := func(c Contribution) bool { return c.Family.Passed }; slices.ContainsFunc(all, passed) {
		all = slices.DeleteFunc(all, func(c Contribution) bool { return !passed(c) })
	}
	if len(all) == 0 {
		return nil, nil
	}
	sortByAge(all)
	out := &Family{Name: all[0].Family.Name, Type: all[0].Family.Type, Passed: all[0].Family.Passed}
	for _, c := range all {
		out.Help = cmp.Or(c.Family.Help, out.Help)
	}
	var next Floors
	switch how := p.of(out.Name, out.Type); {
	case out.Passed: // an agent is with one coderd, or all have the same of it
		out.Series = combineGauges(all, metrics.MergeNewest)
	case cumulative(out.Type):
		out.Series = sumSeries(all, how != metrics.MergeSum, floors)
		next = floors.next(out)
		if out.Type == metrics.Summary {
			addQuantiles(out.Series, all)
		}
		if hidden := refusedOnly(all); hidden != nil {
			out.Series = slices.DeleteFunc(out.Series, func(s Series) bool { return hidden[s.Labels] })
		}
	case how == metrics.MergeSticky:
		out.Series = longestPresent(all).Series
	default:
		out.Series = combineGauges(all, how)
	}
	if len(out.Series) == 0 {
		return nil, next
	}
	return out, next
}

// Fold returns the family that the totals have of a name, once all that is in the
// contributions is merged into them. One of these is what the totals had. All are
// cumulative. all, which is not empty, is sorted anew.
func (p Policy) Fold(all []Contribution) *Family {
	sortByAge(all)
	newest := all[len(all)-1].Family
	return &Family{
		Name: newest.Name, Type: newest.Type, Help: newest.Help, Series: sumSeries(all, p.isWhole(newest.Name, newest.Type), nil),
	}
}

// contributedSeries is a series of one instance.
type contributedSeries struct {
	*Series
	of *Contributor
}

// groupByLabels returns all series by their labels, sorted by these.
func groupByLabels(all []Contribution) [][]contributedSeries {
	index := make(map[string]int, len(all[0].Family.Series))
	var out [][]contributedSeries
	for i := range all {
		c := &all[i]
		for j := range c.Family.Series {
			s := &c.Family.Series[j]
			at, ok := index[s.Labels]
			if !ok {
				at = len(out)
				index[s.Labels] = at
				out = append(out, nil)
			}
			out[at] = append(out[at], contributedSeries{s, &c.Contributor})
		}
	}
	slices.SortFunc(out, func(a, b []contributedSeries) int { return strings.Compare(a[0].Labels, b[0].Labels) })
	return out
}

// sumSeries adds up cumulative series. What is summed is in Base and BaseHist
// alone, so that a sum can be added to again. floors are added too. If each
// instance has the whole, the largest is taken, in Value or Hist.
func sumSeries(all []Contribution, whole bool, floors Floors) []Series {
	groups := groupByLabels(all)
	out := make([]Series, len(groups))
	var parts []*Distribution
	for i, group := range groups {
		sum := &out[i]
		sum.Labels = group[0].Labels
		parts = parts[:0]
		for _, s := range group {
			sum.Created = earliest(sum.Created, s.Created)
			if sum.Changed = max(sum.Changed, s.Changed); !s.of.isTotals() {
				sum.Changed = max(sum.Changed, s.of.UpdatedAt.UnixNano())
			}
			if s.Exemplar != nil && (sum.Exemplar == nil || s.Exemplar.Time >= sum.Exemplar.Time) {
				sum.Exemplar = s.Exemplar
			}
			if whole {
				value, hist := s.whole()
				sum.Value, sum.Hist = max(sum.Value, value), larger(sum.Hist, hist)
				continue
			}
			for _, d := range []*Distribution{s.BaseHist, s.Hist} {
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
func (s *contributedSeries) whole() (float64, *Distribution) {
	if !s.of.isTotals() {
		return s.Value, s.Hist
	}
	return s.Base.plus(s.Value).value(), s.merged()
}

// refusedOnly returns the labels of the series that live instances push, but all of
// them with a value that is refused; nil: there are none.
func refusedOnly(all []Contribution) map[string]bool {
	var refused map[string]bool
	for _, stored := range [...]bool{false, true} {
		for _, c := range all {
			if !c.Live {
				continue
			}
			for i := range c.Family.Series {
				switch s := &c.Family.Series[i]; {
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
func addQuantiles(merged []Series, all []Contribution) {
	only := make(map[string]*Series) // nil: several have it
	for _, c := range all {
		if !c.Live {
			continue
		}
		for i := range c.Family.Series {
			s := &c.Family.Series[i]
			if _, several := only[s.Labels]; several {
				s = nil
			}
			only[c.Family.Series[i].Labels] = s
		}
	}
	for i := range merged {
		if s := only[merged[i].Labels]; s != nil {
			merged[i].Quantiles = s.Quantiles
		}
	}
}

// next returns how coarse the native buckets of a merged family are, as distributions
// without counts.
func (f Floors) next(merged *Family) Floors {
	var next Floors
	for i := range merged.Series {
		s := &merged.Series[i]
		if s.BaseHist == nil || s.BaseHist.Native == nil {
			continue
		}
		n, floor := s.BaseHist.Native, f[s.Labels]
		if floor == nil || floor.Native.Schema != n.Schema || floor.Native.ZeroThreshold != n.ZeroThreshold || len(floor.Bounds) != len(s.BaseHist.Bounds) {
			floor = &Distribution{
				Bounds: s.BaseHist.Bounds,
				Counts: make([]float64, len(s.BaseHist.Bounds)),
				Native: &histogram.FloatHistogram{Schema: n.Schema, ZeroThreshold: n.ZeroThreshold},
			}
		}
		if next == nil {
			next = make(Floors, max(1, len(f)))
		}
		next[s.Labels] = floor
	}
	return next
}

// combineGauges makes one value of each series' current ones.
func combineGauges(all []Contribution, how metrics.Merge) []Series {
	if how == metrics.MergeStickySeries { // of two that had it at once all replicas choose the same
		slices.SortFunc(all, func(a, b Contribution) int { return bytes.Compare(a.Instance[:], b.Instance[:]) })
	}
	groups := groupByLabels(all)
	out := make([]Series, len(groups))
	for i, group := range groups {
		best := *group[0].Series
		if combines(how) && len(group) > 1 {
			best.Value = combine(how, group)
			out[i] = best
			continue
		}
		for _, s := range group[1:] {
			switch how {
			case metrics.MergeNewest: // of several the instance with the newest snapshot
				if s.Changed >= best.Changed {
					best = *s.Series
				}
			default: // whichever had it first
				if s.Since < best.Since {
					best = *s.Series
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

// combine adds gauges, or takes the largest or the least. Values that are NaN or too
// large (see isTerm) are ignored if there are others. Otherwise the result is the
// largest, or the least, of them. The result does not depend on the order.
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
	var sum ExactSum
	for _, v := range terms {
		sum = sum.add(v)
	}
	return sum.value()
}

// longestPresent returns the family of the instance that has had it longest without
// a break. So it is served from there while others come and go, whichever replica
// serves it.
func longestPresent(all []Contribution) *Family {
	return slices.MinFunc(all, func(a, b Contribution) int {
		return cmp.Or(cmp.Compare(a.Family.Since, b.Family.Since), bytes.Compare(a.Instance[:], b.Instance[:]))
	}).Family
}
