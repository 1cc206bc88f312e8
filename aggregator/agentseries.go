package aggregator

import (
	"bytes"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// agentSeries is one agent with the series that it reported.
//
//	open --Close--> closed --no series left--> removed
//	open <--Open--- closed
//
// mu guards the fields below it, but for owner's own. open and removed change only
// under Aggregator.lifecycleMu too. Reports need mu alone.
type agentSeries struct {
	id agent.ID
	// deadline is when a series of the agent next expires.
	deadline atomic.Int64

	mu    sync.Mutex
	ident agent.Identity
	epoch int64
	open  bool
	// removed is true once the agent is not in its shard any more. Then it is not
	// open.
	removed bool
	// served is false while a newer agent with the same labels hides this one.
	served   bool
	instance agent.Instance
	owner    *owner
	// count is the number of series that the agent forwards. bytes are those of
	// their names and labels.
	count, bytes int64
	// families are those of the forwarded series. familiesUnused is true if one may
	// have no series any more.
	families       []agentFamily
	familiesUnused bool
	// typeChanges is Aggregator.typeChanges when the series were last checked.
	typeChanges uint64
	// fresh is true if this replica has all series that the instance ever reported.
	// So a counter that is new here began at 0.
	fresh bool
	// first and reported are the times of the first report since the agent had no series,
	// and of the last one; never: none yet.
	first, reported int64
	// series are those of the last report, in its order.
	series []series
	// stale are the other series that have not expired.
	stale  []staleSeries
	gauges [statsGauges]series
	// sessions are those of the last report, in the order of the apps.
	sessions   []appSeries
	bytesMoved window
}

const never = math.MinInt64

// series is one series of one agent. Either it has a slot of its own, or it
// contributes to a group.
type series struct {
	desc        *desc
	block       *arena.Block
	contributor *contributor
	slot        uint32
	// typeVersion has the low bits of the family's.
	typeVersion uint16
	typ         agent.SampleType
}

// outdated reports whether the family's type has changed since the series was
// created.
func (s *series) outdated() bool {
	return s.typeVersion != uint16(s.desc.family.typeVersion.Load())
}

// staleSeries was not in the last report.
type staleSeries struct {
	series
	seen int64
}

// set stores a value. It returns the reason if its group leaves the value out.
func (s *series) set(v float64) omission {
	if s.block != nil {
		s.block.Set(s.slot, v)
		return included
	}
	return s.contributor.set(v)
}

func newAgentSeries(id agent.ID, s agent.Session) *agentSeries {
	as := &agentSeries{
		id:       id,
		epoch:    s.Epoch,
		open:     true,
		instance: s.Instance,
		fresh:    s.First,
		first:    never,
		reported: never,
	}
	as.deadline.Store(math.MaxInt64)
	return as
}

// openSession opens another session. It returns false if the session is older than
// the last one.
func (as *agentSeries) openSession(s agent.Session) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	if s.Epoch < as.epoch {
		return false
	}
	as.epoch, as.open = s.Epoch, true
	if s.Unknown {
		as.bytesMoved = window{} // what it has may be sent again
	}
	if s.Relayed && !s.Moved {
		// Counters are compared by series: the agent's process may be the same.
		as.instance = s.Instance
		return true
	}
	if s.Instance == as.instance && !s.Moved {
		return true
	}
	// Another process: its counters began anew. What they counted before this
	// session is known to be nothing only in the first. Or the same process, part
	// of whose counts another replica has.
	as.instance, as.fresh = s.Instance, s.First
	for known := range as.forwarded() {
		if known.contributor != nil {
			known.contributor.last = as.firstCount()
		}
	}
	return true
}

// firstCount is the value of a new counter before the agent's next report.
func (as *agentSeries) firstCount() float64 {
	if as.fresh {
		return 0
	}
	return uncounted
}

// forwarded iterates over the series that the agent forwards.
func (as *agentSeries) forwarded() func(yield func(*series) bool) {
	return func(yield func(*series) bool) {
		for i := range as.series {
			if !yield(&as.series[i]) {
				return
			}
		}
		for i := range as.stale {
			if !yield(&as.stale[i].series) {
				return
			}
		}
	}
}

// all iterates over all series of the agent, the stats gauges included.
func (as *agentSeries) all() func(yield func(*series) bool) {
	return func(yield func(*series) bool) {
		for i := range as.gauges {
			if s := &as.gauges[i]; s.desc != nil && !yield(s) {
				return
			}
		}
		for i := range as.sessions {
			if !yield(&as.sessions[i].series) {
				return
			}
		}
		as.forwarded()(yield)
	}
}

// empty reports whether the agent has no series.
func (as *agentSeries) empty() bool {
	for range as.all() {
		return false
	}
	return true
}

// expiresAt returns when a series next expires.
func (as *agentSeries) expiresAt(ttl int64) int64 {
	if as.empty() {
		return math.MaxInt64
	}
	at := as.reported
	for i := range as.stale {
		at = min(at, as.stale[i].seen)
	}
	return at + ttl
}

// noteReport notes the time of a report.
func (as *agentSeries) noteReport(now, ttl int64) {
	if as.first == never {
		as.first = now
	}
	as.reported = now
	as.deadline.Store(as.expiresAt(ttl))
}

// shardKey returns the key of the agent's series.
func (as *agentSeries) shardKey() metrics.ShardKey {
	return metrics.ShardKeyOf(as.ident.Username, as.ident.WorkspaceName)
}

// create creates a series for which room was reserved. It returns false if its type
// is not the family's. The series gets the caller's reference of d.
func (a *Aggregator) create(as *agentSeries, d *desc, t agent.SampleType, v float64, scratch []byte) (series, []byte, bool) {
	s := series{desc: d, typ: t}
	f := d.family
	scratch = scratch[:0]
	if as.served {
		scratch = appendPrefix(scratch, d, &as.ident, f.identity(a.keep))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.documented == nil && f.typ != t {
		return series{}, scratch, false
	}
	s.typeVersion = uint16(f.typeVersion.Load())
	f.series++
	if !a.grouped {
		s.block, s.slot = f.lines.Add(scratch, as.shardKey(), v)
		return s, scratch, true
	}
	s.contributor = &contributor{counter: t == agent.Counter, last: as.firstCount()}
	if as.served {
		a.addToGroupLocked(f, scratch, s.contributor)
		if s.outdated() {
			return series{}, scratch, false
		}
	}
	return s, scratch, true
}

// setSeriesServed shows or hides a series of an agent that is served.
func (a *Aggregator) setSeriesServed(as *agentSeries, s *series, served bool) {
	switch f := s.desc.family; {
	case !as.served:
	case served && s.contributor != nil:
		prefix := appendPrefix(nil, s.desc, &as.ident, f.identity(a.keep))
		f.mu.Lock()
		if !s.outdated() {
			a.addToGroupLocked(f, prefix, s.contributor)
		}
		f.mu.Unlock()
	case served:
		s.block.Show(s.slot, appendPrefix(nil, s.desc, &as.ident, f.identity(a.keep)), as.shardKey())
	case s.contributor != nil:
		a.removeFromGroup(s)
	default:
		s.block, s.slot = s.block.Hide(s.slot)
	}
}

// drop removes a series.
func (a *Aggregator) drop(as *agentSeries, s *series) {
	if s.contributor != nil {
		a.removeFromGroup(s)
	} else {
		s.block.Remove(s.slot)
	}
	if s.typ == agent.Counter {
		// Were it to come back, it would look new.
		as.fresh = false
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
		a.unreserve(as, s.desc.bytes())
		as.familyOf(f).series--
		as.familiesUnused = true
	}
	a.descs.release(s.desc, a.families)
	*s = series{}
}

// dropAll removes all series of an agent, and returns their number.
func (a *Aggregator) dropAll(as *agentSeries) int {
	n := 0
	for s := range as.all() {
		a.drop(as, s)
		n++
	}
	as.series, as.stale, as.sessions, as.first = nil, nil, nil, never
	as.removeUnusedFamilies(true) // the types of the last report count no more
	return n
}

// remove removes an agent. The caller holds lifecycleMu.
func (a *Aggregator) remove(as *agentSeries) {
	as.mu.Lock()
	a.dropAll(as)
	as.removed, as.open = true, false
	as.deadline.Store(math.MaxInt64)
	as.mu.Unlock()
	a.removeName(as)
	a.unsetOwner(as)
	sh := a.shard(as.id)
	sh.mu.Lock()
	delete(sh.agents, as.id)
	sh.mu.Unlock()
}

// relabel gives an agent another identity. The caller holds lifecycleMu.
func (a *Aggregator) relabel(as *agentSeries, ident agent.Identity) {
	key := as.nameKey()
	if nameKeyOf(&ident) != key {
		a.removeName(as)
		a.setIdentity(as, ident)
		a.addName(as)
		return
	}
	if as.ident.TemplateName != ident.TemplateName {
		a.setAgentServed(as, false)
	}
	a.setIdentity(as, ident)
	a.serveNewest(key)
}

// setIdentity sets the identity. The caller holds lifecycleMu.
func (a *Aggregator) setIdentity(as *agentSeries, ident agent.Identity) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a.unsetOwner(as)
	as.ident = ident
	a.setOwner(as)
}

// addName adds an agent to those with its labels. The caller holds lifecycleMu.
func (a *Aggregator) addName(as *agentSeries) {
	key := as.nameKey()
	if len(a.named[key]) > 0 {
		a.hiddenAgents.Add(1)
	}
	a.named[key] = append(a.named[key], as)
	a.serveNewest(key)
}

// removeName removes an agent from those with its labels. The caller holds
// lifecycleMu.
func (a *Aggregator) removeName(as *agentSeries) {
	a.setAgentServed(as, false)
	key := as.nameKey()
	list := slices.DeleteFunc(a.named[key], func(o *agentSeries) bool { return o == as })
	if len(list) == 0 {
		delete(a.named, key)
		return
	}
	a.hiddenAgents.Add(-1)
	a.named[key] = list
	a.serveNewest(key)
}

// serveNewest serves the newest of the agents with the same labels. It first hides
// the one that was served before: two are never served at once.
func (a *Aggregator) serveNewest(key nameKey) {
	list := a.named[key]
	best := 0
	for i := range list {
		if newer(list[i], list[best]) {
			best = i
		}
	}
	if best != 0 {
		a.setAgentServed(list[0], false)
		list[0], list[best] = list[best], list[0]
	}
	a.setAgentServed(list[0], true)
}

// setAgentServed shows or hides all series of an agent.
func (a *Aggregator) setAgentServed(as *agentSeries, served bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.served == served {
		return
	}
	as.served = true
	for s := range as.all() {
		a.setSeriesServed(as, s, served)
	}
	as.served = served
}

// nameKey reads the identity, which changes only under lifecycleMu.
func (as *agentSeries) nameKey() nameKey {
	return nameKeyOf(&as.ident)
}

func nameKeyOf(ident *agent.Identity) nameKey {
	return nameKey{username: ident.Username, workspace: ident.WorkspaceName, agent: ident.AgentName}
}

// newer reports whether a is served before b if both have the same labels.
func newer(a, b *agentSeries) bool {
	if c := a.ident.CreatedAt.Compare(b.ident.CreatedAt); c != 0 {
		return c > 0
	}
	return bytes.Compare(a.id[:], b.id[:]) > 0
}
