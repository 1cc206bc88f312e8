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
	// value is the latest.
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
// is below the last value was counted by a process that began anew.
func (m *member) set(v float64) {
	if m.counter {
		if m.group != nil && !math.IsNaN(m.last) {
			grown := v - m.last
			if grown < 0 {
				grown = v
			}
			m.group.count(grown)
		}
		m.last = v
	}
	if u := math.Float64bits(v); m.value.Load() != u {
		m.value.Store(u)
		m.touch()
	}
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
	total atomic.Uint64
	// dirty is true while the group is in family.dirty.
	dirty atomic.Bool

	// The fields below are guarded by the family's mutex.

	members []*member
	// counts is true once a counter was a member.
	counts bool
	gone   bool
	// block is nil while the group has no line.
	block *arena.Block
	slot  uint32

	// ghost is its place among the groups without members. It is guarded by
	// ghosts.mu.
	ghost *list.Element
	since int64
}

func (g *group) count(grown float64) {
	if grown == 0 {
		return
	}
	for {
		old := g.total.Load()
		if g.total.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+grown)) {
			break
		}
	}
	g.touch()
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

// join makes a series a member of its group, which is made if need be.
func (a *Aggregator) join(src *source, s *series) {
	f := s.desc.family
	prefix := appendPrefix(nil, s.desc, &src.ident, f.identity(a.keep))
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.groups[string(prefix)]
	if g == nil {
		g = &group{family: f, prefix: string(prefix)}
		if f.groups == nil {
			f.groups = make(map[string]*group)
		}
		f.groups[g.prefix] = g
		a.series.Add(1)
		a.families.hold(f)
	}
	a.ghosts.remove(g)
	s.member.group, s.member.index = g, len(g.members)
	g.members = append(g.members, s.member)
	g.counts = g.counts || s.member.counter
	g.touch()
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
	ghost := last == 0 && g.counts
	switch {
	case ghost:
		a.ghosts.add(g, a.since(a.now()))
		g.touch()
	case last == 0:
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
	g.gone = true
	if g.block != nil {
		g.block.Remove(g.slot)
		g.block = nil
	}
	delete(g.family.groups, g.prefix)
	a.series.Add(-1)
	a.families.release(g.family)
}

// refresh brings the lines of the groups up to date. Reports wait for one group
// at most.
func (f *family) refresh() {
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	f.mu.Lock()
	t := f.typeLocked()
	if t != f.groupType {
		f.groupType = t
		for _, g := range f.groups {
			g.touch()
		}
	}
	f.mu.Unlock()

	f.dirtyMu.Lock()
	dirty := f.dirty
	f.dirty = f.spare[:0]
	f.dirtyMu.Unlock()
	for i, g := range dirty {
		dirty[i] = nil
		g.dirty.Store(false)
		f.mu.Lock()
		g.renderLocked(t)
		f.mu.Unlock()
	}
	f.spare = dirty
}

// renderLocked gives the group's line its value.
func (g *group) renderLocked(t metrics.Type) {
	if g.gone {
		return
	}
	v, ok := g.valueLocked(t)
	switch {
	case !ok && g.block != nil:
		g.block.Remove(g.slot)
		g.block = nil
	case !ok:
	case g.block != nil:
		g.block.Set(g.slot, v)
	default:
		g.block, g.slot = g.family.lines.Add([]byte(g.prefix), v)
	}
}

// valueLocked returns the group's value in a family of type t; false if it has
// none.
func (g *group) valueLocked(t metrics.Type) (float64, bool) {
	how := metrics.GroupSum
	if d := g.family.documented; d != nil {
		how = d.Group
	} else if t == metrics.Counter {
		how = metrics.GroupIncrements
	}
	if how == metrics.GroupIncrements {
		return math.Float64frombits(g.total.Load()), g.counts
	}
	if len(g.members) == 0 {
		return 0, false
	}
	var v float64
	switch how {
	case metrics.GroupMax:
		v = maxOf(g.members)
	case metrics.GroupWeightedMean:
		v = meanOf(g.members)
	default:
		for _, m := range g.members {
			v += math.Float64frombits(m.value.Load())
		}
	}
	return canonical(v), true
}

// maxOf returns the largest value. What is not a number counts only if nothing
// else is there.
func maxOf(members []*member) float64 {
	v := math.NaN()
	for _, m := range members {
		if o := math.Float64frombits(m.value.Load()); math.IsNaN(v) || o > v {
			v = o
		}
	}
	return v
}

// meanOf returns the mean weighted by connections; if there is none anywhere,
// the plain mean.
func meanOf(members []*member) float64 {
	var sum, weights, plain float64
	for _, m := range members {
		v, w := math.Float64frombits(m.value.Load()), math.Float64frombits(m.weight.Load())
		sum += v * w
		weights += w
		plain += v
	}
	if weights == 0 {
		return plain / float64(len(members))
	}
	return sum / weights
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
		q.remove(g)
		a.disbandLocked(g)
	}
	return true
}

// reserve takes one of the series that MaxSeries allows; false if there is none
// left, even among the ghosts.
func (a *Aggregator) reserve() bool {
	for a.series.Add(1) > int64(a.opts.MaxSeries) {
		a.series.Add(-1)
		if !a.ghosts.evict(a) {
			return false
		}
	}
	return true
}
