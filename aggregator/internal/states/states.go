// Package states keeps the lines of series that are computed of agents and workspaces. A
// label set has one line, also if several keys have it.
package states

import (
	"cmp"
	"context"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/aggregator/internal/walk"
	"github.com/coder/agentstatsd/metrics"
)

// States has the series of all keys. It is safe for concurrent use.
type States struct {
	families map[string]*arena.Family
	scratch  sync.Pool

	// mu guards the fields below it. It is also held while a scrape begins. So a
	// scrape begins before a key's series are replaced, or after.
	mu    sync.Mutex
	byKey map[agent.SeriesKey][]*stateLine
	// lines has the lines by the hash of their prefix, which stands in the block alone.
	// collided has those by their prefix whose hash another line has.
	lines    map[uint64]*stateLine
	collided map[string]*stateLine
	// waiting are the other keys that have the label set of a line, in the order in which
	// they get it.
	waiting map[*stateLine][]value
	hash    func(prefix []byte) uint64
}

// stateLine is one label set. There are some of each agent, so it is small.
type stateLine struct {
	hash  uint64
	block *arena.Block
	slot  uint32
	// owner is the key whose value the line has. states.mu guards it.
	owner agent.SeriesKey
}

type value struct {
	key   agent.SeriesKey
	value float64
}

// rendered are series with their prefixes, which stand one after the other.
type rendered struct {
	text   []byte
	series []renderedSeries
}

type renderedSeries struct {
	lines *arena.Family
	end   int // of the prefix in the text
	key   metrics.ShardKey
	value float64
}

// LineSize is the memory of a line in bytes, beside that in its block.
const LineSize = int(unsafe.Sizeof(stateLine{}) + unsafe.Sizeof(stateLine{}.hash) + 2*unsafe.Sizeof(&stateLine{}))

// New returns no series, of families that are by their name.
func New(families map[string]*arena.Family) *States {
	t := &States{
		families: families,
		scratch:  sync.Pool{New: func() any { return &rendered{} }},
		byKey:    make(map[agent.SeriesKey][]*stateLine),
		lines:    make(map[uint64]*stateLine),
		collided: make(map[string]*stateLine),
		waiting:  make(map[*stateLine][]value),
	}
	seed := maphash.MakeSeed()
	t.hash = func(prefix []byte) uint64 { return maphash.Bytes(seed, prefix) }
	return t
}

// Set replaces the series of the key, as Aggregator.SetState does. It returns by how many lines
// there are more, and the first family that there is not; empty: there are all.
func (t *States) Set(key agent.SeriesKey, series []agent.Series) (added int, unserved string) {
	r := t.scratch.Get().(*rendered)
	defer t.scratch.Put(r)
	unserved = r.render(t.families, series)
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.replaceLocked(key, r), unserved
}

// Families returns the names of the families, sorted.
func (t *States) Families() []string { return slices.Sorted(maps.Keys(t.families)) }

// Len returns the number of lines.
func (t *States) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lenLocked()
}

// Between calls f while no series are replaced.
func (t *States) Between(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// Walk calls f with the prefix of each line, without a lock. What is added or removed meanwhile may be
// left out. It returns the error of ctx if that ends first, and no other.
func (t *States) Walk(ctx context.Context, f func(prefix string)) error {
	var prefix []byte
	each := func(some []*stateLine) {
		for _, l := range some {
			// Its slot may be another line's by now, which is counted in its place.
			if prefix = l.block.AppendPrefix(prefix[:0], l.slot); len(prefix) > 0 {
				f(string(prefix))
			}
		}
	}
	if err := walk.Some(ctx, &t.mu, t.lines, each); err != nil {
		return err
	}
	return walk.Some(ctx, &t.mu, t.collided, each)
}

// render renders series, and returns the first family that is not among families.
func (r *rendered) render(families map[string]*arena.Family, series []agent.Series) (unserved string) {
	r.text, r.series = r.text[:0], r.series[:0]
	for i := range series {
		s := &series[i]
		lines := families[s.Family]
		if lines == nil {
			unserved = cmp.Or(unserved, s.Family)
			continue
		}
		r.text = append(r.text, s.Family...)
		sep := byte('{')
		var username, workspace string
		for _, l := range s.Labels {
			switch l.Name {
			case "username":
				username = l.Value
			case "workspace_name":
				workspace = l.Value
			}
			if l.Value == "" {
				continue
			}
			r.text = metrics.AppendTextLabel(append(r.text, sep), l.Name, strings.ToValidUTF8(l.Value, "\uFFFD"))
			sep = ','
		}
		if sep == ',' {
			r.text = append(r.text, '}')
		}
		r.text = append(r.text, ' ')
		r.series = append(r.series, renderedSeries{
			lines: lines, end: len(r.text), key: metrics.ShardKeyOf(username, workspace), value: metrics.CanonicalValue(s.Value),
		})
	}
	return unserved
}

// replaceLocked returns the increase of the number of lines.
func (t *States) replaceLocked(key agent.SeriesKey, r *rendered) int {
	before := t.lenLocked()
	old := t.byKey[key]
	lines := make([]*stateLine, 0, len(r.series))
	start := 0
	for i, s := range r.series {
		prefix := r.text[start:s.end]
		start = s.end
		// Mostly the series are the same as before, in the same order.
		hash := t.hash(prefix)
		line := (*stateLine)(nil)
		if i < len(old) && old[i].hash == hash && old[i].has(prefix) {
			line = old[i]
		} else {
			line = t.lineLocked(hash, prefix)
		}
		switch {
		case line == nil:
			line = &stateLine{hash: hash, owner: key}
			line.block, line.slot = s.lines.Add(prefix, s.key, s.value)
			t.addLineLocked(line, prefix)
		case slices.Contains(lines, line):
			continue
		default:
			t.setValueLocked(line, key, s.value)
		}
		lines = append(lines, line)
	}
	for i, line := range old {
		if i < len(lines) && lines[i] == line || slices.Contains(lines, line) {
			continue
		}
		t.releaseLineLocked(line, key)
	}
	if len(lines) == 0 {
		delete(t.byKey, key)
	} else {
		t.byKey[key] = lines
	}
	return t.lenLocked() - before
}

func (t *States) lenLocked() int { return len(t.lines) + len(t.collided) }

func (l *stateLine) has(prefix []byte) bool { return l.block.HasPrefix(l.slot, prefix) }

// lineLocked returns the line of a prefix with that hash; nil: there is none.
func (t *States) lineLocked(hash uint64, prefix []byte) *stateLine {
	if l := t.lines[hash]; l != nil && l.has(prefix) {
		return l
	}
	if len(t.collided) == 0 {
		return nil
	}
	return t.collided[string(prefix)]
}

func (t *States) addLineLocked(l *stateLine, prefix []byte) {
	if t.lines[l.hash] == nil {
		t.lines[l.hash] = l
	} else {
		t.collided[string(prefix)] = l
	}
}

func (t *States) removeLineLocked(l *stateLine) {
	if t.lines[l.hash] == l {
		delete(t.lines, l.hash)
	} else {
		delete(t.collided, string(l.block.AppendPrefix(nil, l.slot)))
	}
}

// setValueLocked sets the value of a line, or, if another key has it, the waiting value.
func (t *States) setValueLocked(l *stateLine, key agent.SeriesKey, v float64) {
	if l.owner == key {
		l.block.Set(l.slot, v)
		return
	}
	waiting := t.waiting[l]
	for i := range waiting {
		if waiting[i].key == key {
			waiting[i].value = v
			return
		}
	}
	t.waiting[l] = append(waiting, value{key, v})
}

// releaseLineLocked removes the key from the line, which the first waiting key
// gets.
func (t *States) releaseLineLocked(l *stateLine, key agent.SeriesKey) {
	waiting := t.waiting[l]
	switch {
	case l.owner != key:
		waiting = slices.DeleteFunc(waiting, func(h value) bool { return h.key == key })
	case len(waiting) > 0:
		next := waiting[0]
		waiting = slices.Delete(waiting, 0, 1)
		l.owner = next.key
		l.block.Set(l.slot, next.value)
	default:
		t.removeLineLocked(l)
		l.block.Retire(l.slot)
		return
	}
	if len(waiting) == 0 {
		delete(t.waiting, l)
	} else {
		t.waiting[l] = waiting
	}
}
