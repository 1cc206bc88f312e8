package aggregator

import (
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// Report ingests one report, which was received at now. It returns the refusals,
// one for each reason. created is the number of series that it created, which cost
// some 10 us each. A report of a session that is not the open one is ignored. r is
// not kept.
//
// Series that are absent from r expire.
func (a *Aggregator) Report(id agent.ID, epoch int64, now time.Time, r agent.Report) (refused []agent.Refusal, created int) {
	as := a.agent(id)
	if as == nil {
		a.metrics.ignored.Inc()
		return nil, 0
	}
	in := a.ingesters.Get().(*ingester)
	refused, ok := in.ingest(as, epoch, a.since(now), r)
	created = in.created
	a.ingesters.Put(in)
	if !ok {
		a.metrics.ignored.Inc()
		return nil, 0
	}
	a.countRefused(refused)
	return refused, created
}

// AddBytes ingests the bytes of an older report of the session's instance, which a
// newer one follows. It returns the fields that it refused.
func (a *Aggregator) AddBytes(id agent.ID, epoch int64, now time.Time, s agent.Stats) []agent.Refusal {
	as := a.agent(id)
	if as == nil {
		a.metrics.ignored.Inc()
		return nil
	}
	in := a.ingesters.Get().(*ingester)
	refused, ok := in.ingestOlder(as, epoch, a.since(now), s)
	a.ingesters.Put(in)
	if !ok {
		a.metrics.ignored.Inc()
		return nil
	}
	a.countRefused(refused)
	return refused
}

func (a *Aggregator) countRefused(refused []agent.Refusal) {
	for i := range refused {
		a.metrics.refused.WithLabelValues(refused[i].Reason).Add(float64(refused[i].Count))
	}
}

// ingester ingests one report at a time. It keeps its buffers, so that a report
// like the one before allocates nothing.
//
// An agent mostly sends the same series in the same order. So each sample is
// compared with the series at its place in the last report, undecoded if possible.
// This is the matching state. The first sample of another series starts the lookup
// state: from there on series are found by their descs.
//
//	matching --startLookup--> lookup --finishReport--> matching
//
// The goroutine of the report owns all fields. It holds the agent's mutex.
type ingester struct {
	agg    *Aggregator
	agent  *agentSeries
	report agent.Report
	// now is the report's time, or that of the report before if that is later.
	now int64

	// cursor is the index of the series of agent.series to compare next.
	cursor int
	stored int
	// created is the number of series that the report created.
	created  int
	omitted  [omissions]int
	refusals []agent.Refusal
	// deferred are the indices of samples that were over a limit. They are ingested
	// again once the absent series are known.
	deferred []int

	// lookup is true in the lookup state. Then next has the series that the report
	// had so far. places has the place of each of the agent's series.
	lookup bool
	next   []series
	places map[*desc]place

	// families is a buffer for the agent's list, which uses it while borrowed is
	// true. A report can add many families.
	families []agentFamily
	borrowed bool

	// labels are a sample's canonical ones. key and prefix are scratch.
	labels      []agent.Label
	key, prefix []byte
}

// place of a series: an index of agent.series; from len(agent.series) on, an index
// of agent.stale; or inReport. A series that was dropped leaves an empty place.
type place int

// inReport is the place of a series that the report had.
const inReport place = -1

func newIngester(a *Aggregator) *ingester {
	return &ingester{agg: a, places: make(map[*desc]place)}
}

// ingest ingests a report. It returns false if the session is not the agent's open
// one.
func (in *ingester) ingest(as *agentSeries, epoch, now int64, r agent.Report) ([]agent.Refusal, bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if !as.open || as.epoch != epoch {
		return nil, false
	}
	in.agent, in.report, in.now = as, r, max(now, as.reported)
	in.cursor, in.stored, in.created = 0, 0, 0
	in.omitted, in.refusals = [omissions]int{}, nil
	// Deferred for the case that r panics: what was stored until then counts.
	defer in.finishReport()
	in.fetchSeries()
	in.ingestStats()
	in.dropOutdated()
	for i := range r.Len() {
		in.ingestSample(i)
	}
	in.retryDeferred()
	return in.refusals, true
}

// ingestOlder ingests the bytes of an older report. It returns false if the session is
// not the agent's open one.
func (in *ingester) ingestOlder(as *agentSeries, epoch, now int64, s agent.Stats) ([]agent.Refusal, bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if !as.open || as.epoch != epoch {
		return nil, false
	}
	in.agent, in.now = as, max(now, as.reported)
	in.omitted, in.refusals = [omissions]int{}, nil
	in.ingestBytes(&s)
	as.noteReport(in.now, in.agg.ttl())
	refused := in.refusals
	in.agent, in.refusals = nil, nil
	return refused, true
}

// dropOutdated drops the series whose family has another type now.
func (in *ingester) dropOutdated() {
	as := in.agent
	changes := in.agg.typeChanges.Load()
	if as.typeChanges == changes {
		return
	}
	as.typeChanges = changes
	for s := range as.forwarded() {
		if s.outdated() {
			in.startLookup()
			delete(in.places, s.desc)
			in.agg.drop(as, s)
		}
	}
}

// ingestSample ingests one sample.
func (in *ingester) ingestSample(i int) {
	have := in.expectedSeries()
	if have != nil {
		if f := have.desc.encoding.Load(); f != nil && f.typ == have.typ {
			if v, ok := in.report.Match(i, &f.SampleEncoding); ok {
				in.ingestExpected(i, have, metrics.CanonicalValue(v))
				return
			}
		}
	}
	s := in.report.Sample(i)
	v := metrics.CanonicalValue(s.Value)
	if have == nil || have.typ != s.Type || !have.desc.is(s.Name, s.Labels) {
		in.ingestUnexpected(i, s, v)
		return
	}
	have.desc.learnEncoding(in.report, i, s)
	in.ingestExpected(i, have, v)
}

// expectedSeries returns the series at this place of the last report; nil if there
// is none.
func (in *ingester) expectedSeries() *series {
	as := in.agent
	if in.lookup {
		for in.cursor < len(as.series) && in.isPassed(&as.series[in.cursor]) {
			in.cursor++
		}
	}
	if in.cursor == len(as.series) {
		return nil
	}
	return &as.series[in.cursor]
}

// isPassed reports whether no sample of a series is expected any more.
func (in *ingester) isPassed(s *series) bool {
	return s.desc == nil || in.places[s.desc] == inReport || s.outdated()
}

// ingestExpected ingests sample i, which is of the expected series.
func (in *ingester) ingestExpected(i int, have *series, v float64) {
	if have.typ == agent.Counter && !countable(v) {
		// As if it were not in the report: it expires, unless it comes back.
		in.startLookup()
		in.cursor++
		in.refuseSample(reasonInvalidValue, in.report.Sample(i), agent.Label{})
		return
	}
	in.cursor++
	in.storeValue(have, v)
	if in.lookup {
		in.places[have.desc] = inReport
		in.next = append(in.next, *have)
	}
}

// storeValue stores the value of a sample.
func (in *ingester) storeValue(s *series, v float64) {
	in.stored++
	if o := s.set(v); o != included {
		in.omitted[o]++
	}
}

// ingestUnexpected ingests sample i, s, which may be of another series than the
// expected one.
func (in *ingester) ingestUnexpected(i int, s *agent.Sample, v float64) {
	if reason, label := in.canonicalise(s); reason != "" {
		in.refuseSample(reason, s, label)
		return
	}
	if have := in.expectedSeries(); have != nil && have.typ == s.Type && have.desc.is(s.Name, in.labels) {
		have.desc.learnEncoding(in.report, i, s)
		in.ingestExpected(i, have, v)
		return
	}
	if s.Type == agent.Counter && !countable(v) {
		in.refuseSample(reasonInvalidValue, s, agent.Label{})
		return
	}
	in.startLookup()
	switch reason, label := in.ingestCanonical(s, v); {
	case reason == "":
	case isLimit(reason) && len(in.deferred) < len(in.agent.series)+len(in.agent.stale):
		in.deferred = append(in.deferred, i)
	default:
		in.refuseSample(reason, s, label)
	}
}

// ingestCanonical ingests a sample whose labels are canonical. It creates a
// missing series. It returns a reason if it refuses the sample.
func (in *ingester) ingestCanonical(s *agent.Sample, v float64) (metrics.Reason, agent.Label) {
	in.key = appendKey(in.key[:0], s.Name, in.labels)
	d := in.agg.descs.acquire(in.key)
	if d == nil {
		// Nobody has it, so this agent has not.
		if reason, label := in.checkNew(s); reason != "" {
			return reason, label
		}
		// Before it costs a desc.
		if in.agent.count >= int64(in.agg.opts.Load().MaxSeriesPerAgent) {
			return reasonAgentSeries, agent.Label{}
		}
		if d = in.agg.descs.create(in.key, len(in.labels), in.agg.families); d == nil {
			return reasonTooManyFamilies, agent.Label{}
		}
	}
	reason := in.ingestDesc(d, s, v)
	if reason != "" {
		in.agg.descs.release(d, in.agg.families)
	}
	return reason, agent.Label{}
}

// ingestDesc ingests a sample of d, of which the caller has a reference. The caller
// keeps it if ingestDesc returns a reason.
func (in *ingester) ingestDesc(d *desc, s *agent.Sample, v float64) metrics.Reason {
	as, a := in.agent, in.agg
	if doc := d.family.documented; doc != nil && doc.Type != sampleType(s.Type) {
		return ReasonWrongType
	}
	at, known := in.places[d]
	if known && at == inReport {
		return reasonDuplicateSeries
	}
	if known {
		have := in.seriesAt(at)
		if !have.outdated() && have.typ != s.Type {
			if reason := in.declareType(d.family, s.Type); reason != "" {
				return reason
			}
		}
		if !have.outdated() {
			if have.typ != s.Type {
				return as.contestType(d.family)
			}
			a.descs.release(d, a.families) // the series has its own reference
			in.addToReport(*have, v)
			return ""
		}
		a.drop(as, have)
		delete(in.places, d)
	}
	if reason := a.reserve(as, d.bytes()); reason != "" {
		return reason
	}
	if reason := in.declareType(d.family, s.Type); reason != "" {
		a.unreserve(as, d.bytes())
		return reason
	}
	made, scratch, ok := a.create(as, d, s.Type, v, in.prefix)
	in.prefix = scratch
	if !ok {
		a.unreserve(as, d.bytes())
		return as.contestType(d.family)
	}
	in.created++
	as.familyOf(d.family).series++
	if known && made.contributor != nil {
		made.contributor.last = uncounted // it was of another type
	}
	in.addToReport(made, v)
	return ""
}

// addToReport stores the value of a series, and adds it to those of the report.
func (in *ingester) addToReport(s series, v float64) {
	in.storeValue(&s, v)
	in.places[s.desc] = inReport
	in.next = append(in.next, s)
}

// seriesAt returns the agent's series at a place other than inReport.
func (in *ingester) seriesAt(p place) *series {
	if n := len(in.agent.series); int(p) >= n {
		return &in.agent.stale[int(p)-n].series
	}
	return &in.agent.series[p]
}

// startLookup starts the lookup state. It records the places of the agent's series.
func (in *ingester) startLookup() {
	if in.lookup {
		return
	}
	in.lookup = true
	n := len(in.agent.series)
	for i, s := range in.agent.series {
		in.places[s.desc] = place(i)
		if i < in.cursor {
			in.places[s.desc] = inReport
			in.next = append(in.next, s)
		}
	}
	for i, s := range in.agent.stale {
		in.places[s.desc] = place(n + i)
	}
}

// finishReport replaces the agent's series by those of the report. The others
// become stale.
func (in *ingester) finishReport() {
	as := in.agent
	if in.cursor < len(as.series) {
		in.startLookup()
	}
	if in.lookup {
		in.reconcileSeries()
	}
	as.removeUnusedFamilies(true)
	in.returnFamilies()
	as.noteReport(in.now, in.agg.ttl())
	in.agg.metrics.reports.Inc()
	in.agg.metrics.samples.Add(float64(in.stored))
	for o, n := range in.omitted {
		if n > 0 {
			in.agg.metrics.omitted[o].Add(float64(n))
		}
	}
	clear(in.labels[:cap(in.labels)]) // strings of the report
	in.agent, in.report, in.refusals, in.deferred = nil, nil, nil, in.deferred[:0]
}

// reconcileSeries makes the absent series stale, and drops outdated ones.
func (in *ingester) reconcileSeries() {
	as := in.agent
	kept := as.stale[:0]
	keep := func(s *series, seen int64) {
		switch {
		case s.desc == nil || in.places[s.desc] == inReport:
		case s.outdated():
			in.agg.drop(as, s)
		default:
			kept = append(kept, staleSeries{series: *s, seen: seen})
		}
	}
	for i := range as.stale {
		keep(&as.stale[i].series, as.stale[i].seen)
	}
	clear(as.stale[len(kept):])
	for i := range as.series {
		keep(&as.series[i], as.reported)
	}
	if as.stale = kept; len(kept) == 0 {
		as.stale = nil
	}
	if len(in.next) > cap(as.series) {
		as.series = make([]series, len(in.next)) // no longer than need be
	} else {
		clear(as.series[:cap(as.series)])
		as.series = as.series[:len(in.next)]
	}
	copy(as.series, in.next)
	clear(in.next)
	clear(in.places)
	in.next, in.lookup = in.next[:0], false
}
