package aggregator

import (
	"math"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// Report takes in one report, received at now, and returns what was refused of
// it, one refusal for each reason, and how many series were created for it, which
// costs some 10 us each. A report of a session that is not the open one is
// ignored. r is not kept.
//
// Series that the agent had and that are absent from r expire.
func (a *Aggregator) Report(id agent.ID, epoch int64, now time.Time, r agent.Report) (refused []agent.Refusal, created int) {
	src := a.source(id)
	if src == nil {
		a.metrics.ignored.Inc()
		return nil, 0
	}
	in := a.intakes.Get().(*intake)
	refused, ok := in.take(src, epoch, a.since(now), r)
	created = in.created
	a.intakes.Put(in)
	if !ok {
		a.metrics.ignored.Inc()
		return nil, 0
	}
	for i := range refused {
		a.metrics.refused.WithLabelValues(refused[i].Reason).Add(float64(refused[i].Count))
	}
	return refused, created
}

// intake takes in one report at a time. It holds what is needed for that, so
// that a report like the one before allocates nothing.
//
// An agent mostly sends the same series in the same order. So each sample is
// compared, undecoded if it can be, with the series that stood at its place in
// the last report. Only from the first one on that is another series is each
// looked up.
type intake struct {
	agg    *Aggregator
	src    *source
	report agent.Report
	// now is the report's time, or that of the report before if that is later.
	now int64

	// cursor is the next series of src.series to compare with.
	cursor   int
	accepted int
	// created are the series that nobody served before the report.
	created  int
	omitted  [omissions]int
	refusals []agent.Refusal
	// deferred are the samples that found no room, by their indices: they are
	// looked at again once it is known what the report does not have any more.
	deferred []int

	// lookup is true from the first unexpected sample on. Then next has the
	// series that the report had so far, and held says of each of the source's
	// where it is.
	lookup bool
	next   []series
	held   map[*desc]place

	// families is a buffer, which the source has while borrowed is true: a report can
	// bring many families.
	families []agentFamily
	borrowed bool

	// labels are a sample's in canonical form. key and prefix are scratch.
	labels      []agent.Label
	key, prefix []byte
}

// place of a series: an index of src.series; from len(src.series) on, an index
// of src.stale; or taken. A series that was dropped leaves an empty one.
type place int

// taken by the report.
const taken place = -1

func newIntake(a *Aggregator) *intake {
	return &intake{agg: a, held: make(map[*desc]place)}
}

// take takes in a report; false if the source has another session.
func (in *intake) take(src *source, epoch, now int64, r agent.Report) ([]agent.Refusal, bool) {
	src.mu.Lock()
	defer src.mu.Unlock()
	if !src.open || src.epoch != epoch {
		return nil, false
	}
	in.src, in.report, in.now = src, r, max(now, src.reported)
	in.cursor, in.accepted, in.created = 0, 0, 0
	in.omitted, in.refusals = [omissions]int{}, nil
	// Deferred for the case that r panics: what was taken in until then counts.
	defer in.finish()
	in.stats(r.Stats())
	in.dropOutdated()
	for i := range r.Len() {
		in.sample(i)
	}
	in.retry()
	return in.refusals, true
}

// dropOutdated drops what is not served any more, as its family has another
// type.
func (in *intake) dropOutdated() {
	src := in.src
	changes := in.agg.typeChanges.Load()
	if src.typeChanges == changes {
		return
	}
	src.typeChanges = changes
	for s := range src.forwarded() {
		if s.outdated() {
			in.startLookup()
			delete(in.held, s.desc)
			in.agg.drop(src, s)
		}
	}
}

// sample takes in one sample.
func (in *intake) sample(i int) {
	have := in.expected()
	if have != nil {
		if f := have.desc.encoding.Load(); f != nil && f.typ == have.typ {
			if v, ok := in.report.Match(i, &f.SampleEncoding); ok {
				in.match(i, have, canonical(v))
				return
			}
		}
	}
	s := in.report.Sample(i)
	v := canonical(s.Value)
	if have == nil || have.typ != s.Type || !have.desc.is(s.Name, s.Labels) {
		in.unexpected(i, s, v)
		return
	}
	have.desc.learnEncoding(in.report, i, s)
	in.match(i, have, v)
}

// expected returns the series that stood at this place in the last report; nil
// if there was none.
func (in *intake) expected() *series {
	src := in.src
	if in.lookup {
		for in.cursor < len(src.series) && in.passed(&src.series[in.cursor]) {
			in.cursor++
		}
	}
	if in.cursor == len(src.series) {
		return nil
	}
	return &src.series[in.cursor]
}

// passed tells whether no sample is to be expected of a series any more.
func (in *intake) passed(s *series) bool {
	return s.desc == nil || in.held[s.desc] == taken || s.outdated()
}

// match takes in sample i, which is of the expected series.
func (in *intake) match(i int, have *series, v float64) {
	if have.typ == agent.Counter && !countable(v) {
		// As if it were not in the report: it expires, unless it comes back.
		in.startLookup()
		in.cursor++
		in.refuseSample(reasonInvalidValue, in.report.Sample(i), agent.Label{})
		return
	}
	in.cursor++
	in.accept(have, v)
	if in.lookup {
		in.held[have.desc] = taken
		in.next = append(in.next, *have)
	}
}

// accept stores the value of a sample.
func (in *intake) accept(s *series, v float64) {
	in.accepted++
	if o := s.set(v); o != included {
		in.omitted[o]++
	}
}

// unexpected takes in sample i, s, which is not known to be of the expected
// series.
func (in *intake) unexpected(i int, s *agent.Sample, v float64) {
	if reason, label := in.canonicalise(s); reason != "" {
		in.refuseSample(reason, s, label)
		return
	}
	if have := in.expected(); have != nil && have.typ == s.Type && have.desc.is(s.Name, in.labels) {
		have.desc.learnEncoding(in.report, i, s)
		in.match(i, have, v)
		return
	}
	if s.Type == agent.Counter && !countable(v) {
		in.refuseSample(reasonInvalidValue, s, agent.Label{})
		return
	}
	in.startLookup()
	switch reason, label := in.place(s, v); {
	case reason == "":
	case isLimit(reason) && len(in.deferred) < len(in.src.series)+len(in.src.stale):
		in.deferred = append(in.deferred, i)
	default:
		in.refuseSample(reason, s, label)
	}
}

// place takes in a sample whose labels are in canonical form: as one of a series
// that the agent has, else as a new one. It returns why it did not.
func (in *intake) place(s *agent.Sample, v float64) (metrics.Reason, agent.Label) {
	in.key = appendKey(in.key[:0], s.Name, in.labels)
	d := in.agg.descs.acquire(in.key)
	if d == nil {
		// Nobody has it, so this agent has not.
		if reason, label := in.check(s); reason != "" {
			return reason, label
		}
		// Before it costs a desc.
		if in.src.count >= int64(in.agg.opts.MaxSeriesPerAgent) {
			return reasonAgentSeries, agent.Label{}
		}
		if d = in.agg.descs.create(in.key, len(in.labels), in.agg.families); d == nil {
			return reasonTooManyFamilies, agent.Label{}
		}
	}
	reason := in.found(d, s, v)
	if reason != "" {
		in.agg.descs.release(d, in.agg.families)
	}
	return reason, agent.Label{}
}

// found takes in a sample of d, which the caller holds. If it returns a reason
// not to, the hold is still the caller's.
func (in *intake) found(d *desc, s *agent.Sample, v float64) metrics.Reason {
	src, a := in.src, in.agg
	if doc := d.family.documented; doc != nil && doc.Type != sampleType(s.Type) {
		return reasonWrongType
	}
	at, held := in.held[d]
	if held && at == taken {
		return reasonDuplicateSeries
	}
	if held {
		have := in.at(at)
		if !have.outdated() && have.typ != s.Type {
			if reason := in.agree(d.family, s.Type); reason != "" {
				return reason
			}
		}
		if !have.outdated() {
			if have.typ != s.Type {
				return src.contest(d.family)
			}
			a.descs.release(d, a.families) // the series has its own hold
			in.takeIn(*have, v)
			return ""
		}
		a.drop(src, have)
		delete(in.held, d)
	}
	if reason := a.reserve(src, d.bytes()); reason != "" {
		return reason
	}
	if reason := in.agree(d.family, s.Type); reason != "" {
		a.unreserve(src, d.bytes())
		return reason
	}
	made, scratch, ok := a.create(src, d, s.Type, v, in.prefix)
	in.prefix = scratch
	if !ok {
		a.unreserve(src, d.bytes())
		return src.contest(d.family)
	}
	in.created++
	src.familyOf(d.family).series++
	if held && made.member != nil {
		made.member.last = uncounted // it was of another type
	}
	in.takeIn(made, v)
	return ""
}

// takeIn makes a series one of the report.
func (in *intake) takeIn(s series, v float64) {
	in.accept(&s, v)
	in.held[s.desc] = taken
	in.next = append(in.next, s)
}

// at returns the series that the source has at a place that is not taken.
func (in *intake) at(p place) *series {
	if n := len(in.src.series); int(p) >= n {
		return &in.src.stale[int(p)-n].series
	}
	return &in.src.series[p]
}

// canonicalise puts the sample's labels into in.labels, sorted and without the
// empty ones. It checks what bounds their size.
func (in *intake) canonicalise(s *agent.Sample) (metrics.Reason, agent.Label) {
	switch {
	case s.Type > agent.Gauge:
		return reasonInvalidType, agent.Label{}
	case len(s.Name) > metrics.MaxNameBytes:
		return metrics.ReasonNameTooLong, agent.Label{}
	case len(s.Labels) > metrics.MaxLabels:
		return metrics.ReasonTooManyLabels, agent.Label{}
	}
	in.labels = in.labels[:0]
	size := 0
	for _, l := range s.Labels {
		if l.Value == "" {
			continue
		}
		if len(l.Name) > metrics.MaxLabelNameBytes {
			return metrics.ReasonLabelNameTooLong, l
		}
		if len(l.Value) > metrics.MaxLabelValueBytes {
			return metrics.ReasonLabelValueTooLong, l
		}
		size += len(l.Name) + len(l.Value)
		i := len(in.labels)
		in.labels = append(in.labels, l)
		for ; i > 0 && in.labels[i-1].Name > l.Name; i-- {
			in.labels[i] = in.labels[i-1]
		}
		in.labels[i] = l
	}
	if size > metrics.MaxLabelsBytes {
		return metrics.ReasonLabelsTooLong, agent.Label{}
	}
	return "", agent.Label{}
}

// check applies to a new name and its labels the rules that those of a desc have
// passed.
func (in *intake) check(s *agent.Sample) (metrics.Reason, agent.Label) {
	if reason := metrics.CheckForwardedName(s.Name); reason != "" {
		return reason, agent.Label{}
	}
	for i, l := range in.labels {
		if reason := metrics.CheckLabel(l.Name, l.Value); reason != "" {
			return reason, l
		}
		if i > 0 && l.Name == in.labels[i-1].Name {
			return metrics.ReasonDuplicateLabel, l
		}
	}
	return "", agent.Label{}
}

// startLookup notes what the source has and what of it the report had so far.
func (in *intake) startLookup() {
	if in.lookup {
		return
	}
	in.lookup = true
	n := len(in.src.series)
	for i, s := range in.src.series {
		in.held[s.desc] = place(i)
		if i < in.cursor {
			in.held[s.desc] = taken
			in.next = append(in.next, s)
		}
	}
	for i, s := range in.src.stale {
		in.held[s.desc] = place(n + i)
	}
}

// finish makes the series that the report had those of the source, and the
// others stale.
func (in *intake) finish() {
	src := in.src
	if in.cursor < len(src.series) {
		in.startLookup()
	}
	if in.lookup {
		in.settle()
	}
	src.tidyFamilies(true)
	in.returnFamilies()
	src.reported = in.now
	src.deadline.Store(src.expiresAt(in.agg.ttl))
	in.agg.metrics.reports.Inc()
	in.agg.metrics.samples.Add(float64(in.accepted))
	for o, n := range in.omitted {
		if n > 0 {
			in.agg.metrics.omitted[o].Add(float64(n))
		}
	}
	clear(in.labels[:cap(in.labels)]) // strings of the report
	in.src, in.report, in.refusals, in.deferred = nil, nil, nil, in.deferred[:0]
}

// settle makes stale what the report does not have any more, and drops what is
// not served any more.
func (in *intake) settle() {
	src := in.src
	kept := src.stale[:0]
	keep := func(s *series, seen int64) {
		switch {
		case s.desc == nil || in.held[s.desc] == taken:
		case s.outdated():
			in.agg.drop(src, s)
		default:
			kept = append(kept, staleSeries{series: *s, seen: seen})
		}
	}
	for i := range src.stale {
		keep(&src.stale[i].series, src.stale[i].seen)
	}
	clear(src.stale[len(kept):])
	for i := range src.series {
		keep(&src.series[i], src.reported)
	}
	if src.stale = kept; len(kept) == 0 {
		src.stale = nil
	}
	if len(in.next) > cap(src.series) {
		src.series = make([]series, len(in.next)) // no longer than need be
	} else {
		clear(src.series[:cap(src.series)])
		src.series = src.series[:len(in.next)]
	}
	copy(src.series, in.next)
	clear(in.next)
	clear(in.held)
	in.next, in.lookup = in.next[:0], false
}

// countable reports whether v can be a counter's value.
func countable(v float64) bool {
	return v >= 0 && v <= math.MaxFloat64
}

// canonical returns v with one bit pattern for everything that is not a number,
// which is not the one that Prometheus takes for the end of a series, and
// without the sign of zero, which the text drops.
func canonical(v float64) float64 {
	switch {
	case v != v:
		return math.NaN()
	case v == 0:
		return 0
	}
	return v
}
