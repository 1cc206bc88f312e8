// Package family has metric families as values. It decodes what an instance of coderd
// pushes, and decides what of it can be served. It merges the families of several
// instances, and encodes and renders the results.
//
//	messages --DecodeSnapshot--> Snapshot --Admission.Admit--> Set, of an instance
//	Sets --Policy.Merge--> Family --Render--> text, protobuf
//	Sets --Policy.Fold--> Set, of the totals
//	Set <--Codec--> bytes of a row
//
// Its functions follow from their arguments alone. There is no lock, no clock and no
// state. Callers may share families and sets between goroutines, as nothing changes
// them. Limits, instances and what becomes of refusals are package pushed's.
package family

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/coder/agentstatsd/metrics"
)

// Family is one family of one instance, or several merged. It is never changed.
type Family struct {
	Name string
	Type metrics.Type
	Help string
	// Since is when the instance came to have the family and to be alive, in
	// nanoseconds since 1970. Cumulative families have none.
	Since int64
	// Series are sorted by their labels.
	Series []Series
	// Passed means that its series are of agents, and pass through coderd. They are
	// served as they are while their instance is alive, whatever their type.
	Passed bool
	// refusedLabels are those of series that were pushed with it and refused.
	refusedLabels map[string]bool
}

// refuse notes that the series of these labels is refused.
func (f *Family) refuse(labels string) {
	if f.refusedLabels == nil {
		f.refusedLabels = make(map[string]bool)
	}
	f.refusedLabels[labels] = true
}

// Series is one series of one instance. What it contributes to a sum is Base
// plus Value, BaseHist plus Hist.
type Series struct {
	// Labels are names and values, sorted by name. labelEnd ends each.
	// Two series are the same if these are equal.
	Labels string
	// Value is the newest of a counter, gauge or untyped series.
	Value float64
	// Base is what a counter counted before its resets.
	Base ExactSum
	// Changed is when a gauge got its value, and Since when the instance came to have
	// it and to be alive. Both are in nanoseconds since 1970. A counter, histogram or
	// summary has in Since when it last began at 0; 0: unknown. In the totals Changed
	// is when the newest of what was added was pushed.
	Changed, Since int64
	// Created is when a counter, histogram or summary began, in nanoseconds
	// since 1970; 0: unknown.
	Created  int64
	Exemplar *Exemplar
	// Hist and BaseHist are those of histograms and summaries.
	Hist, BaseHist *Distribution
	// Quantiles of a summary, sorted. They are served while no other instance
	// that is alive has the series: of several there is no common one.
	Quantiles []Quantile
	// Refused means that the newest snapshot has the series with a value that is
	// refused. What it counted before counts on, but is served only where another
	// instance pushes the series.
	Refused bool
	// noSum means that the sum of Hist, as it was pushed, is no number.
	noSum bool
}

// Quantile is one quantile of a summary.
type Quantile struct {
	// Rank is from 0 to 1.
	Rank, Value float64
}

// labelEnd ends each name and value in the labels of a series. It is no part
// of UTF-8.
const labelEnd = "\xff"

// Cumulative reports whether the values of the family are counted up, so that they
// outlive their instance: those of counters, histograms and summaries that are coderd's.
func (f *Family) Cumulative() bool { return cumulative(f.Type) && !f.Passed }

func cumulative(t metrics.Type) bool {
	return t == metrics.Counter || t == metrics.Histogram || t == metrics.Summary
}

// lines is what s counts as against limits: each line in a scrape, and each KiB of
// labels.
func (s *Series) lines() int {
	return 1 + len(s.Labels)>>10 + s.Hist.lines() + s.BaseHist.lines() + len(s.Quantiles)
}

func (f *Family) lines() int {
	n := 0
	for i := range f.Series {
		n += f.Series[i].lines()
	}
	return n
}

func compareSeries(a, b Series) int { return strings.Compare(a.Labels, b.Labels) }

func compareExemplars(a, b Exemplar) int {
	return cmp.Or(cmp.Compare(a.Time, b.Time), strings.Compare(a.Labels, b.Labels), cmp.Compare(a.Value, b.Value))
}

// succeed returns the family after a snapshot that has next, where old is what
// the instance had; nil: nothing. Cumulative series that next lacks are kept.
// Gauges that old lacks have no Since, and the caller may set it.
func (p Policy) succeed(old, next *Family) *Family {
	switch {
	case old == nil && next.Cumulative():
		return next
	case old == nil:
		out := *next
		out.Series = slices.Clone(next.Series)
		return &out
	}
	out := &Family{Name: next.Name, Type: next.Type, Help: cmp.Or(next.Help, old.Help), Since: old.Since, Passed: next.Passed}
	keep := next.Cumulative()
	whole := p.isWhole(next.Name, next.Type)
	out.Series = make([]Series, 0, max(len(old.Series), len(next.Series)))
	was, is := old.Series, next.Series
	for len(was) > 0 || len(is) > 0 {
		order := 0
		switch {
		case len(is) == 0:
			order = -1
		case len(was) == 0:
			order = 1
		default:
			order = compareSeries(was[0], is[0])
		}
		switch {
		case order < 0:
			if keep {
				s := was[0]
				s.Quantiles, s.Refused = nil, next.refusedLabels[s.Labels]
				out.Series = append(out.Series, s)
			}
			was = was[1:]
			continue
		case order > 0:
			out.Series = append(out.Series, is[0])
			is = is[1:]
			continue
		}
		s := is[0]
		s.Labels = was[0].Labels // one copy in memory
		switch {
		case !keep:
			s.Since = was[0].Since
			if math.Float64bits(s.Value) == math.Float64bits(was[0].Value) {
				s.Changed = was[0].Changed
			}
		case whole:
			if s.noSum {
				s.Hist = s.Hist.withSum(was[0].Hist.Sum)
			}
			s.Value, s.Hist = max(s.Value, was[0].Value), larger(was[0].Hist, s.Hist)
			s.Created = earliest(was[0].Created, s.Created)
			s.Base, s.BaseHist = was[0].Base, was[0].BaseHist // for when the operator has it summed again
		default:
			s.continueFrom(&was[0])
		}
		out.Series = append(out.Series, s)
		was, is = was[1:], is[1:]
	}
	return out
}

// setSince sets since when the instance has a family of gauges and each of its
// series. goesOn is true if it had some of them, and was alive.
func (f *Family) setSince(now int64, goesOn bool) {
	if f.Cumulative() {
		return
	}
	if !goesOn {
		f.Since = now
	}
	for i := range f.Series {
		if s := &f.Series[i]; !goesOn || s.Since == 0 {
			s.Since = now
		}
	}
}

// continueFrom makes s, as it was pushed, the successor of old. s counts from 0
// again if it is less, or if its created timestamp says so.
//
// A sum that is no number is replaced by the last one that was.
func (s *Series) continueFrom(old *Series) {
	s.Created = earliest(old.Created, s.Created)
	anew := old.Since != 0 && s.Since > old.Since
	s.Since = max(s.Since, old.Since)
	s.Base, s.BaseHist = old.Base, old.BaseHist
	if s.Exemplar == nil {
		s.Exemplar = old.Exemplar
	}
	if s.Hist == nil {
		if anew || s.Value < old.Value {
			s.Base = s.Base.plus(old.Value)
		}
		return
	}
	if anew || s.Hist.resetSince(old.Hist) {
		s.BaseHist = old.Hist
		if old.BaseHist != nil {
			s.BaseHist = sumDistributions([]*Distribution{old.BaseHist, old.Hist})
		}
		return
	}
	// A copy: the pushed one can be decided on again.
	h := *s.Hist
	if s.noSum {
		h.Sum = old.Hist.Sum
	}
	h.Exemplars = newestByBucket(old.Hist.Exemplars, h.Exemplars)
	h.NativeExemplars = newestExemplars(old.Hist.NativeExemplars, h.NativeExemplars)
	s.Hist = &h
}

// refuseAll returns the family with all its series refused, or not.
func (f *Family) refuseAll(refused bool) *Family {
	same := func(s Series) bool { return s.Refused == refused }
	if !slices.ContainsFunc(f.Series, func(s Series) bool { return !same(s) }) {
		return f
	}
	out := *f
	out.Series = slices.Clone(f.Series)
	for i := range out.Series {
		out.Series[i].Refused = refused
	}
	return &out
}

// earliest returns the earlier of two times, of which 0 is none.
func earliest(a, b int64) int64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// fold returns a cumulative family without its contribution: its last values are
// subtracted from its sums. Only what is counted from then on is added.
func (f *Family) fold() *Family {
	out := *f
	out.Series = slices.Clone(f.Series)
	for i := range out.Series {
		s := &out.Series[i]
		s.Exemplar, s.Quantiles, s.Refused = nil, nil, false
		if s.Hist == nil {
			s.Base = ExactSum{-s.Value}
			continue
		}
		last := *s.Hist
		last.Exemplars, last.NativeExemplars = nil, nil
		s.Hist, s.BaseHist = &last, last.minus()
	}
	return &out
}
