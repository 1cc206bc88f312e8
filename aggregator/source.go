package aggregator

import (
	"bytes"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
)

// source is one agent with what it reported.
type source struct {
	id agent.ID
	// deadline is when something of the source next expires.
	deadline atomic.Int64

	mu    sync.Mutex
	ident agent.Identity
	epoch int64
	open  bool
	// gone is true once the source is removed. Then it is not open.
	gone bool
	// served is false while an agent with equal labels is served instead.
	served   bool
	instance agent.Instance
	owner    *owner
	// count and bytes are of the series that the agent forwards: how many, and
	// what their names and labels have.
	count, bytes int64
	// families are those of these series. untidy is true if one may be over.
	families []agentFamily
	untidy   bool
	// typeChanges is how many there were when the series were last looked at.
	typeChanges uint64
	// fresh is true if all that the instance ever reported came here and is
	// still held, so that a counter not seen before began at 0.
	fresh bool
	// reported is the time of the last report; never: none yet.
	reported int64
	// series are those of the last report, in its order.
	series []series
	// stale are the others that have not expired.
	stale  []staleSeries
	gauges [statsGauges]series
	// sessions are those of the last report, in the order of the apps.
	sessions []appSeries
	moved    window
}

const never = math.MinInt64

// series is one series of one agent. Either it has a slot of its own, or it is
// a member of groups.
type series struct {
	desc   *desc
	block  *arena.Block
	member *member
	slot   uint32
	// generation is the end of the family's.
	generation uint16
	typ        agent.SampleType
}

// outdated tells whether the family has changed its type since.
func (s *series) outdated() bool {
	return s.generation != uint16(s.desc.family.generation.Load())
}

// staleSeries was not in the last report.
type staleSeries struct {
	series
	seen int64
}

// set stores a value. It returns why that is left out of the group, if it is.
func (s *series) set(v float64) omission {
	if s.block != nil {
		s.block.Set(s.slot, v)
		return included
	}
	return s.member.set(v)
}

func newSource(id agent.ID, s agent.Session) *source {
	src := &source{
		id:       id,
		epoch:    s.Epoch,
		open:     true,
		instance: s.Instance,
		fresh:    s.First,
		reported: never,
	}
	src.deadline.Store(math.MaxInt64)
	return src
}

// reopen begins another session; false if it is older than the last one.
func (src *source) reopen(s agent.Session) bool {
	src.mu.Lock()
	defer src.mu.Unlock()
	if s.Epoch < src.epoch {
		return false
	}
	src.epoch, src.open = s.Epoch, true
	if s.Instance == src.instance && !s.Elsewhere {
		return true
	}
	// Another process: its counters began anew. What they counted before this
	// session is known to be nothing only in the first. Or the same process, part
	// of whose counts another replica has.
	src.instance, src.fresh = s.Instance, s.First
	for held := range src.forwarded() {
		if held.member != nil {
			held.member.last = src.firstCount()
		}
	}
	return true
}

// firstCount is what a counter counted up to before the source's next report.
func (src *source) firstCount() float64 {
	if src.fresh {
		return 0
	}
	return uncounted
}

// forwarded goes through the series that the agent forwards.
func (src *source) forwarded() func(yield func(*series) bool) {
	return func(yield func(*series) bool) {
		for i := range src.series {
			if !yield(&src.series[i]) {
				return
			}
		}
		for i := range src.stale {
			if !yield(&src.stale[i].series) {
				return
			}
		}
	}
}

// all goes through the series of the source, the stats gauges included.
func (src *source) all() func(yield func(*series) bool) {
	return func(yield func(*series) bool) {
		for i := range src.gauges {
			if s := &src.gauges[i]; s.desc != nil && !yield(s) {
				return
			}
		}
		for i := range src.sessions {
			if !yield(&src.sessions[i].series) {
				return
			}
		}
		src.forwarded()(yield)
	}
}

// empty reports whether the source has no series.
func (src *source) empty() bool {
	for range src.all() {
		return false
	}
	return true
}

// expiresAt returns when something next expires.
func (src *source) expiresAt(ttl int64) int64 {
	if src.empty() {
		return math.MaxInt64
	}
	at := src.reported
	for i := range src.stale {
		at = min(at, src.stale[i].seen)
	}
	return at + ttl
}

// create makes a series in the room that was reserved for it; false if its type
// is not the family's. It takes over the caller's hold of d.
func (a *Aggregator) create(src *source, d *desc, t agent.SampleType, v float64, scratch []byte) (series, []byte, bool) {
	s := series{desc: d, typ: t}
	f := d.family
	scratch = scratch[:0]
	if src.served {
		scratch = appendPrefix(scratch, d, &src.ident, f.identity(a.keep))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.documented == nil && f.typ != t {
		return series{}, scratch, false
	}
	s.generation = uint16(f.generation.Load())
	f.series++
	if !a.grouped {
		s.block, s.slot = f.lines.Add(scratch, v)
		return s, scratch, true
	}
	s.member = &member{counter: t == agent.Counter, last: src.firstCount()}
	if src.served {
		a.joinLocked(f, scratch, s.member)
		if s.outdated() {
			return series{}, scratch, false
		}
	}
	return s, scratch, true
}

// setServed shows or hides a series of a source that is served.
func (a *Aggregator) setServed(src *source, s *series, served bool) {
	switch f := s.desc.family; {
	case !src.served:
	case served && s.member != nil:
		prefix := appendPrefix(nil, s.desc, &src.ident, f.identity(a.keep))
		f.mu.Lock()
		if !s.outdated() {
			a.joinLocked(f, prefix, s.member)
		}
		f.mu.Unlock()
	case served:
		s.block.Show(s.slot, appendPrefix(nil, s.desc, &src.ident, f.identity(a.keep)))
	case s.member != nil:
		a.leave(s)
	default:
		s.block, s.slot = s.block.Hide(s.slot)
	}
}

// drop takes a series away for good.
func (a *Aggregator) drop(src *source, s *series) {
	if s.member != nil {
		a.leave(s)
	} else {
		s.block.Remove(s.slot)
	}
	if s.typ == agent.Counter {
		// Were it to come back, it would look new.
		src.fresh = false
	}
	f := s.desc.family
	f.mu.Lock()
	if !s.outdated() {
		f.series--
	}
	f.mu.Unlock()
	if s.desc.computed() {
		a.series.Add(-1)
	} else {
		a.unreserve(src, s.desc.bytes())
		src.familyOf(f).series--
		src.untidy = true
	}
	a.descs.release(s.desc, a.families)
	*s = series{}
}

// dropAll takes all series of a source away, and returns how many.
func (a *Aggregator) dropAll(src *source) int {
	n := 0
	for s := range src.all() {
		a.drop(src, s)
		n++
	}
	src.series, src.stale, src.sessions = nil, nil, nil
	src.tidyFamilies(true) // what the last report said counts no more
	return n
}

// remove forgets a source. The caller holds life.
func (a *Aggregator) remove(src *source) {
	src.mu.Lock()
	a.dropAll(src)
	src.gone, src.open = true, false
	src.deadline.Store(math.MaxInt64)
	src.mu.Unlock()
	a.detach(src)
	a.unsetOwner(src)
	sh := a.shard(src.id)
	sh.mu.Lock()
	delete(sh.sources, src.id)
	sh.mu.Unlock()
}

// relabel gives a source another identity. The caller holds life.
func (a *Aggregator) relabel(src *source, ident agent.Identity) {
	key := src.nameKey()
	if nameKeyOf(&ident) != key {
		a.detach(src)
		a.setIdentity(src, ident)
		a.attach(src)
		return
	}
	if src.ident.TemplateName != ident.TemplateName {
		a.serve(src, false)
	}
	a.setIdentity(src, ident)
	a.elect(key)
}

// setIdentity is called by holders of life.
func (a *Aggregator) setIdentity(src *source, ident agent.Identity) {
	src.mu.Lock()
	defer src.mu.Unlock()
	a.unsetOwner(src)
	src.ident = ident
	a.setOwner(src)
}

// attach adds a source to those that have its labels. The caller holds life.
func (a *Aggregator) attach(src *source) {
	key := src.nameKey()
	if len(a.named[key]) > 0 {
		a.shadowed.Add(1)
	}
	a.named[key] = append(a.named[key], src)
	a.elect(key)
}

// detach takes a source out of those that have its labels. The caller holds
// life.
func (a *Aggregator) detach(src *source) {
	a.serve(src, false)
	key := src.nameKey()
	list := slices.DeleteFunc(a.named[key], func(o *source) bool { return o == src })
	if len(list) == 0 {
		delete(a.named, key)
		return
	}
	a.shadowed.Add(-1)
	a.named[key] = list
	a.elect(key)
}

// elect has the newest of the sources with the same labels served. The one that
// was served before goes first: at no time are there two.
func (a *Aggregator) elect(key nameKey) {
	list := a.named[key]
	best := 0
	for i := range list {
		if newer(list[i], list[best]) {
			best = i
		}
	}
	if best != 0 {
		a.serve(list[0], false)
		list[0], list[best] = list[best], list[0]
	}
	a.serve(list[0], true)
}

// serve shows or hides all series of a source.
func (a *Aggregator) serve(src *source, served bool) {
	src.mu.Lock()
	defer src.mu.Unlock()
	if src.served == served {
		return
	}
	src.served = true
	for s := range src.all() {
		a.setServed(src, s, served)
	}
	src.served = served
}

// nameKey reads the identity, which only callers that hold life change.
func (src *source) nameKey() nameKey {
	return nameKeyOf(&src.ident)
}

func nameKeyOf(ident *agent.Identity) nameKey {
	return nameKey{username: ident.Username, workspace: ident.WorkspaceName, agent: ident.AgentName}
}

// newer reports whether a is served before b when both have the same labels.
func newer(a, b *source) bool {
	if c := a.ident.CreatedAt.Compare(b.ident.CreatedAt); c != 0 {
		return c > 0
	}
	return bytes.Compare(a.id[:], b.id[:]) > 0
}
