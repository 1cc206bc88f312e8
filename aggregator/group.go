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

// orphanAge is how long the sum of counters outlives its last contributor. A
// workspace that is stopped overnight continues its sum in the morning, as a
// counter should.
const orphanAge = 24 * time.Hour

// orphanShare is the part of MaxSeries that orphaned groups may be, 1 in 10. They
// outlive their agents, which could otherwise fill all of it.
const orphanShare = 10

// uncounted as a contributor's last value makes its next value a baseline.
var uncounted = math.NaN()

// contributor is one series of one agent in a group.
type contributor struct {
	// value is the latest one of a gauge. Not a number: the group leaves it out.
	value atomic.Uint64
	// weight is the agent's connection count, for latencies only.
	weight atomic.Uint64

	// The fields below are guarded by the agent's mutex.

	counter bool
	// last is the value up to which a counter was added to the group.
	last float64
	// group is nil while the agent is not served.
	group *group
	// index in group.contributors. The family's mutex guards it.
	index int
}

// set stores the newest value. It adds a counter's increase to the group. A value
// below the last one was counted by a new process. A value that is left out does
// not change a counter's total.
func (m *contributor) set(v float64) omission {
	omitted := omit(v)
	if m.counter {
		if omitted == included {
			m.countGrowth(v)
		}
		return omitted
	}
	if omitted != included {
		v = math.NaN()
	}
	if u := math.Float64bits(v); m.value.Load() != u {
		m.value.Store(u)
		m.markGroupDirty()
	}
	return omitted
}

func (m *contributor) countGrowth(v float64) {
	if m.group != nil && !math.IsNaN(m.last) && v != m.last {
		grown := v - m.last
		if grown < 0 {
			grown = v
		}
		m.group.total.add(grown)
		m.group.markDirty()
	}
	m.last = v
}

func (m *contributor) setWeight(w float64) {
	if u := math.Float64bits(w); m.weight.Load() != u {
		m.weight.Store(u)
		m.markGroupDirty()
	}
}

func (m *contributor) markGroupDirty() {
	if m.group != nil {
		m.group.markDirty()
	}
}

// group is one series to which several agents contribute.
//
//	(none) --first contributor--> live --last one removed--> removed
//	live --last counter removed--> orphaned --24 h, or its room is needed--> removed
//	orphaned --contributor added--> live
//
// Only sums of counters become orphaned. The family's mutex guards the state.
type group struct {
	family *family
	prefix string
	// total is the sum of the increases of its counters.
	total tally
	// dirty is true while the group is in family.dirty.
	dirty atomic.Bool

	// The fields below are guarded by the family's mutex.

	contributors []*contributor
	removed      bool
	// orphaned is true while the group is kept without contributors.
	orphaned bool
	// served is the total that was last served, in its round.
	served float64
	round  uint64
	// block is nil while the group has no line.
	block *arena.Block
	slot  uint32

	// element is the group's place in the queue of orphaned groups. orphanQueue.mu
	// guards it.
	element    *list.Element
	orphanedAt int64
}

// markDirty makes the next scrape render the group's line.
func (g *group) markDirty() {
	if g.dirty.Load() || !g.dirty.CompareAndSwap(false, true) {
		return
	}
	f := g.family
	f.dirtyMu.Lock()
	defer f.dirtyMu.Unlock()
	f.dirty = append(f.dirty, g)
}

// addToGroupLocked adds a series to its group, which is created if it is missing. A
// group that was orphaned does not count for the family's type any more. If that
// changes the type, the series is outdated.
func (a *Aggregator) addToGroupLocked(f *family, prefix []byte, m *contributor) {
	g := f.groups[string(prefix)]
	if g == nil {
		g = &group{family: f, prefix: string(prefix)}
		if f.groups == nil {
			f.groups = make(map[string]*group)
		}
		f.groups[g.prefix] = g
		a.series.Add(1)
		a.seriesBytes.Add(int64(len(g.prefix)))
		a.families.retain(f)
	}
	m.group, m.index = g, len(g.contributors)
	g.contributors = append(g.contributors, m)
	g.markDirty()
	if g.orphaned {
		g.orphaned = false
		f.orphans--
		a.orphans.remove(g)
		f.chooseTypeLocked()
	}
}

// removeFromGroup removes a series from its group. A group without contributors is
// removed at once, or orphaned if it sums counters.
func (a *Aggregator) removeFromGroup(s *series) {
	g := s.contributor.group
	if g == nil {
		return
	}
	s.contributor.group = nil
	f := g.family
	f.mu.Lock()
	last := len(g.contributors) - 1
	g.contributors[s.contributor.index] = g.contributors[last]
	g.contributors[s.contributor.index].index = s.contributor.index
	g.contributors[last] = nil
	g.contributors = g.contributors[:last]
	orphaned := last == 0 && !g.removed && f.groupingLocked() == metrics.GroupIncrements
	switch {
	case orphaned:
		g.orphaned = true
		f.orphans++
		a.orphans.add(g, a.since(a.now()))
		g.markDirty()
	case last == 0 && !g.removed:
		a.removeGroupLocked(g)
	default:
		g.markDirty()
	}
	f.mu.Unlock()
	if orphaned {
		for a.orphans.count() > max(1, a.opts.Load().MaxSeries/orphanShare) {
			a.orphans.evictOldest(a)
		}
	}
}

// removeGroupLocked removes a group without contributors.
func (a *Aggregator) removeGroupLocked(g *group) {
	if g.block != nil {
		g.block.Retire(g.slot)
		g.block = nil
	}
	if g.orphaned {
		g.family.orphans--
	}
	delete(g.family.groups, g.prefix)
	a.forgetGroupLocked(g)
	g.family.chooseTypeLocked()
}

// forgetGroupLocked removes a group but its line and its entry in the family, which
// the caller removes.
func (a *Aggregator) forgetGroupLocked(g *group) {
	g.removed = true
	a.orphans.remove(g)
	a.series.Add(-1)
	a.seriesBytes.Add(-int64(len(g.prefix)))
	a.families.release(g.family)
}

// refresh renders the lines of dirty groups. Reports wait for one group at most.
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

// renderLocked writes the group's value into its line.
func (g *group) renderLocked() {
	if g.removed {
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
		g.block, g.slot = g.family.lines.Add([]byte(g.prefix), metrics.ShardKeyOf(g.prefix, ""), v)
	}
}

// valueLocked returns the group's value; false if all values are left out.
func (g *group) valueLocked() (float64, bool) {
	switch g.family.groupingLocked() {
	case metrics.GroupIncrements:
		return g.totalLocked(), true
	case metrics.GroupMax:
		return maxOf(g.contributors)
	case metrics.GroupWeightedMean:
		return meanOf(g.contributors)
	default:
		return sumOf(g.contributors)
	}
}

// totalLocked returns the total, which falls only when a round ends.
func (g *group) totalLocked() float64 {
	v, round := g.total.value()
	if round != g.round || v > g.served {
		g.served, g.round = v, round
	}
	return g.served
}

func sumOf(contributors []*contributor) (float64, bool) {
	var s sum
	some := false
	for _, m := range contributors {
		if v := math.Float64frombits(m.value.Load()); !math.IsNaN(v) {
			s.add(v)
			some = true
		}
	}
	return metrics.CanonicalValue(s.value()), some
}

func maxOf(contributors []*contributor) (float64, bool) {
	most := math.Inf(-1)
	for _, m := range contributors {
		if v := math.Float64frombits(m.value.Load()); v > most {
			most = v
		}
	}
	return most, !math.IsInf(most, -1)
}

// meanOf returns the mean weighted by connections. Without any connection it
// returns the plain mean.
func meanOf(contributors []*contributor) (float64, bool) {
	var weighted, weights, plain float64
	n := 0
	for _, m := range contributors {
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

// orphanQueue has the orphaned groups, the oldest first.
type orphanQueue struct {
	mu    sync.Mutex
	queue list.List
}

func (q *orphanQueue) add(g *group, now int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	g.orphanedAt = now
	g.element = q.queue.PushBack(g)
}

func (q *orphanQueue) remove(g *group) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if g.element != nil {
		q.queue.Remove(g.element)
		g.element = nil
	}
}

func (q *orphanQueue) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.queue.Len()
}

// popBefore pops the oldest group if it was orphaned before the given time.
func (q *orphanQueue) popBefore(before int64) *group {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.queue.Front()
	if e == nil {
		return nil
	}
	g := e.Value.(*group)
	if g.orphanedAt > before {
		return nil
	}
	q.queue.Remove(e)
	g.element = nil
	return g
}

// evictOldest removes the oldest group; false if there is none. The caller holds no
// family's mutex.
func (q *orphanQueue) evictOldest(a *Aggregator) bool {
	return q.removeGroup(q.popBefore(math.MaxInt64), a)
}

// removeExpired removes the groups that were orphaned for orphanAge.
func (q *orphanQueue) removeExpired(now int64, a *Aggregator) {
	for q.removeGroup(q.popBefore(now-int64(orphanAge)), a) {
	}
}

func (q *orphanQueue) removeGroup(g *group, a *Aggregator) bool {
	if g == nil {
		return false
	}
	g.family.mu.Lock()
	defer g.family.mu.Unlock()
	// It may have got a contributor since it was popped, and lost it again.
	if len(g.contributors) == 0 && !g.removed {
		a.removeGroupLocked(g)
	}
	return true
}
