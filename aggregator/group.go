package aggregator

import (
	"container/list"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// ghostAge is how long the sum of counters outlives its last member. A workspace
// that is stopped over night goes on in the morning where it was, as a counter
// should; longer would only keep what nobody asks for.
const ghostAge = 24 * time.Hour

// ghostShare is the part of MaxSeries that such sums may take, one in 10: they
// outlive the agents that made them, so those could fill all of it with them.
const ghostShare = 10

// uncounted as a member's last count has the next one taken for a baseline.
var uncounted = math.NaN()

// member is one series of one agent as a part of a group.
type member struct {
	// value is the latest of a gauge; not a number: none that counts.
	value atomic.Uint64
	// weight is the agent's connection count. It is set with latencies only.
	weight atomic.Uint64

	// The fields below are guarded by the source's mutex.

	counter bool
	// last is how far a counter was counted.
	last float64
	// group is nil while the source is not served.
	group *group
	// index in group.members is guarded by the family's mutex.
	index int
}

// set stores the member's newest value and counts what a counter grew by: what
// is below the last value was counted by a process that began anew. A value that
// is left out of the group changes nothing of what a counter counted.
func (m *member) set(v float64) omission {
	omitted := omit(v)
	if m.counter {
		if omitted == included {
			m.count(v)
		}
		return omitted
	}
	if omitted != included {
		v = math.NaN()
	}
	if u := math.Float64bits(v); m.value.Load() != u {
		m.value.Store(u)
		m.touch()
	}
	return omitted
}

func (m *member) count(v float64) {
	if m.group != nil && !math.IsNaN(m.last) && v != m.last {
		grown := v - m.last
		if grown < 0 {
			grown = v
		}
		m.group.total.add(grown)
		m.group.touch()
	}
	m.last = v
}

func (m *member) setWeight(w float64) {
	if u := math.Float64bits(w); m.weight.Load() != u {
		m.weight.Store(u)
		m.touch()
	}
}

func (m *member) touch() {
	if m.group != nil {
		m.group.touch()
	}
}

// group is one series that several agents make up.
type group struct {
	family *family
	prefix string
	// total is the sum of what its counters grew by.
	total tally
	// dirty is true while the group is in family.dirty.
	dirty atomic.Bool

	// The fields below are guarded by the family's mutex.

	members []*member
	gone    bool
	// orphan is true while it is kept without members.
	orphan bool
	// shown is the total that was last served, in its round.
	shown float64
	round uint64
	// block is nil while the group has no line.
	block *arena.Block
	slot  uint32

	// ghost is its place among the groups without members. It is guarded by
	// ghosts.mu.
	ghost *list.Element
	since int64
}

// touch has the group's line made anew by the next scrape.
func (g *group) touch() {
	if g.dirty.Load() || !g.dirty.CompareAndSwap(false, true) {
		return
	}
	f := g.family
	f.dirtyMu.Lock()
	defer f.dirtyMu.Unlock()
	f.dirty = append(f.dirty, g)
}

// joinLocked makes a series a member of its group, which is made if need be. A sum
// that outlived its agents counts for the family's type no more: if agents give the
// family another one, that is its type now, and the series is outdated.
func (a *Aggregator) joinLocked(f *family, prefix []byte, m *member) {
	g := f.groups[string(prefix)]
	if g == nil {
		g = &group{family: f, prefix: string(prefix)}
		if f.groups == nil {
			f.groups = make(map[string]*group)
		}
		f.groups[g.prefix] = g
		a.series.Add(1)
		a.seriesBytes.Add(int64(len(g.prefix)))
		a.families.hold(f)
	}
	m.group, m.index = g, len(g.members)
	g.members = append(g.members, m)
	g.touch()
	if g.orphan {
		g.orphan = false
		f.ghosts--
		a.ghosts.remove(g)
		f.electTypeLocked()
	}
}

// leave takes a series out of its group. A group without members is gone at
// once, but for sums of counters.
func (a *Aggregator) leave(s *series) {
	g := s.member.group
	if g == nil {
		return
	}
	s.member.group = nil
	f := g.family
	f.mu.Lock()
	last := len(g.members) - 1
	g.members[s.member.index] = g.members[last]
	g.members[s.member.index].index = s.member.index
	g.members[last] = nil
	g.members = g.members[:last]
	ghost := last == 0 && !g.gone && f.groupingLocked() == metrics.GroupIncrements
	switch {
	case ghost:
		g.orphan = true
		f.ghosts++
		a.ghosts.add(g, a.since(a.now()))
		g.touch()
	case last == 0 && !g.gone:
		a.disbandLocked(g)
	default:
		g.touch()
	}
	f.mu.Unlock()
	if ghost {
		for a.ghosts.count() > max(1, a.opts.MaxSeries/ghostShare) {
			a.ghosts.evict(a)
		}
	}
}

// disbandLocked takes a group without members away.
func (a *Aggregator) disbandLocked(g *group) {
	if g.block != nil {
		g.block.Retire(g.slot)
		g.block = nil
	}
	if g.orphan {
		g.family.ghosts--
	}
	delete(g.family.groups, g.prefix)
	a.abandonLocked(g)
	g.family.electTypeLocked()
}

// abandonLocked forgets a group, whose line and place in the family are the
// caller's.
func (a *Aggregator) abandonLocked(g *group) {
	g.gone = true
	a.ghosts.remove(g)
	a.series.Add(-1)
	a.seriesBytes.Add(-int64(len(g.prefix)))
	a.families.release(g.family)
}

// refresh brings the lines of the groups up to date. Reports wait for one group
// at most.
func (f *family) refresh() {
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	f.dirtyMu.Lock()
	dirty := f.dirty
	f.dirty = f.spare[:0]
	f.dirtyMu.Unlock()
	for i, g := range dirty {
		dirty[i] = nil
		g.dirty.Store(false)
		f.mu.Lock()
		g.renderLocked()
		f.mu.Unlock()
	}
	f.spare = dirty
}

// renderLocked gives the group's line its value.
func (g *group) renderLocked() {
	if g.gone {
		return
	}
	v, ok := g.valueLocked()
	switch {
	case !ok && g.block != nil:
		g.block.Retire(g.slot)
		g.block = nil
	case !ok:
	case g.block != nil:
		g.block.Set(g.slot, v)
	default:
		g.block, g.slot = g.family.lines.Add([]byte(g.prefix), v)
	}
}

// valueLocked returns the group's value; false if it has none, as all values
// are left out.
func (g *group) valueLocked() (float64, bool) {
	switch g.family.groupingLocked() {
	case metrics.GroupIncrements:
		return g.totalLocked(), true
	case metrics.GroupMax:
		return maxOf(g.members)
	case metrics.GroupWeightedMean:
		return meanOf(g.members)
	default:
		return sumOf(g.members)
	}
}

// totalLocked returns the total, which does not fall but to begin anew.
func (g *group) totalLocked() float64 {
	v, round := g.total.value()
	if round != g.round || v > g.shown {
		g.shown, g.round = v, round
	}
	return g.shown
}

func sumOf(members []*member) (float64, bool) {
	var s sum
	some := false
	for _, m := range members {
		if v := math.Float64frombits(m.value.Load()); !math.IsNaN(v) {
			s.add(v)
			some = true
		}
	}
	return canonical(s.value()), some
}

func maxOf(members []*member) (float64, bool) {
	most := math.Inf(-1)
	for _, m := range members {
		if v := math.Float64frombits(m.value.Load()); v > most {
			most = v
		}
	}
	return most, !math.IsInf(most, -1)
}

// meanOf returns the mean weighted by connections; if there is none anywhere,
// the plain mean.
func meanOf(members []*member) (float64, bool) {
	var weighted, weights, plain float64
	n := 0
	for _, m := range members {
		v, w := math.Float64frombits(m.value.Load()), math.Float64frombits(m.weight.Load())
		if math.IsNaN(v) {
			continue
		}
		weighted += v * w
		weights += w
		plain += v
		n++
	}
	switch {
	case n == 0:
		return 0, false
	case weights == 0:
		return plain / float64(n), true
	}
	return weighted / weights, true
}

// ghosts are the groups without members, the oldest first.
type ghosts struct {
	mu    sync.Mutex
	queue list.List
}

func (q *ghosts) add(g *group, now int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	g.since = now
	g.ghost = q.queue.PushBack(g)
}

func (q *ghosts) remove(g *group) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if g.ghost != nil {
		q.queue.Remove(g.ghost)
		g.ghost = nil
	}
}

func (q *ghosts) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.queue.Len()
}

// pop takes the oldest ghost out if it is from before the given time.
func (q *ghosts) pop(before int64) *group {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.queue.Front()
	if e == nil {
		return nil
	}
	g := e.Value.(*group)
	if g.since > before {
		return nil
	}
	q.queue.Remove(e)
	g.ghost = nil
	return g
}

// evict takes the oldest ghost away; false if there is none. The caller holds
// no family's mutex.
func (q *ghosts) evict(a *Aggregator) bool {
	return q.disband(q.pop(math.MaxInt64), a)
}

// expire takes away the ghosts that are old enough.
func (q *ghosts) expire(now int64, a *Aggregator) {
	for q.disband(q.pop(now-int64(ghostAge)), a) {
	}
}

func (q *ghosts) disband(g *group, a *Aggregator) bool {
	if g == nil {
		return false
	}
	g.family.mu.Lock()
	defer g.family.mu.Unlock()
	// It may have found a member meanwhile, even lost it again.
	if len(g.members) == 0 && !g.gone {
		a.disbandLocked(g)
	}
	return true
}
