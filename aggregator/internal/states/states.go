// Package states keeps the lines of series that are computed of agents and workspaces. A
// label set has one line, also if several keys have it.
//
// Of each line only its value and two references are kept: to its head, which lines of many
// workspaces have, and to its name, which is the text that all lines of a workspace end with.
package states

import (
	"cmp"
	"context"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"unsafe"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
)

// States has the series of all keys. It is safe for concurrent use.
type States struct {
	generations *arena.Generations
	families    map[string]*arena.Family
	scratch     sync.Pool
	hash        func(name []byte) uint64

	// mu guards the fields below it. It is also held while a scrape begins. So a
	// scrape begins before a key's series are replaced, or after.
	mu sync.Mutex
	// lines is the number of lines.
	lines int
	// agents and workspaces say where the rows of a key are. further are the other names of the few
	// keys that have more than one.
	agents, workspaces map[agent.ID]place
	further            map[agent.SeriesKey][]place
	// heads are those with lines, by their text.
	heads map[string]*head
	// names are those with lines, by the hash of their text, which stands in the group alone.
	// collided has those by their text whose hash another name has.
	names    map[uint64]name
	collided map[string]name
	groups   []*group
	// roomy are the numbers of the groups that may have room. The last one is tried first.
	roomy []uint32
	// waiting are the other keys that have the label set of a line, in the order in which
	// they get it. waits are the lines by the key that waits.
	waiting map[line][]value
	waits   map[agent.SeriesKey][]line
}

// name is the number of a name in its group, and that of the group.
type name uint32

const nameBits = 8 // arena.Group.AddName returns 8 bits

func (n name) number() uint8 { return uint8(n) }

// place is a name of a key, with the owner that the key is there.
type place struct {
	name  name
	owner uint32
}

// line is a label set.
type line struct {
	name name
	head *arena.Head
}

type value struct {
	key   agent.SeriesKey
	owner uint32
	value float64
}

type group struct {
	*arena.Group
	number uint32
	// owners is the highest one that was given.
	owners uint32
	listed bool // in States.roomy
}

type head struct {
	*arena.Head
	lines int
}

// The sizes of what a key and a name take in maps, beside the rows.
const (
	keySize  = int(unsafe.Sizeof(agent.ID{}) + unsafe.Sizeof(place{}))
	nameSize = int(unsafe.Sizeof(uint64(0)) + unsafe.Sizeof(name(0)))
	headSize = int(unsafe.Sizeof("") + unsafe.Sizeof(&head{}) + unsafe.Sizeof(head{}) + unsafe.Sizeof(arena.Head{}))
)

// New returns no series, of families that are by their name. All have the generations.
func New(generations *arena.Generations, families map[string]*arena.Family) *States {
	t := &States{
		generations: generations,
		families:    families,
		scratch:     sync.Pool{New: func() any { return new([]change) }},
		agents:      make(map[agent.ID]place),
		workspaces:  make(map[agent.ID]place),
		further:     make(map[agent.SeriesKey][]place),
		heads:       make(map[string]*head),
		names:       make(map[uint64]name),
		collided:    make(map[string]name),
		waiting:     make(map[line][]value),
		waits:       make(map[agent.SeriesKey][]line),
	}
	seed := maphash.MakeSeed()
	t.hash = func(name []byte) uint64 { return maphash.Bytes(seed, name) }
	return t
}

// Set replaces the series of keys, as Aggregator.SetStates does. It returns by how many lines
// there are more, and the first family that there is not; empty: there are all.
func (t *States) Set(states []agent.KeySeries) (added int, unserved string) {
	scratch := t.scratch.Get().(*[]change)
	defer t.scratch.Put(scratch)
	if n := len(states); n > len(*scratch) {
		*scratch = append(*scratch, make([]change, n-len(*scratch))...)
	}
	changes := (*scratch)[:len(states)]
	for i := range changes {
		unserved = cmp.Or(unserved, changes[i].render(t.families, states[i].Series))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.lines
	for i := range changes {
		t.replaceLocked(states[i].Key, &changes[i])
		changes[i].end()
	}
	return t.lines - before, unserved
}

// Families returns the names of the families, sorted.
func (t *States) Families() []string { return slices.Sorted(maps.Keys(t.families)) }

// Len returns the number of lines.
func (t *States) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lines
}

// Between calls f while no series are replaced.
func (t *States) Between(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// Walk calls f with what each line begins with before its value, without a lock. What is added or
// removed meanwhile may be left out. It returns the error of ctx if that ends first, and no other.
func (t *States) Walk(ctx context.Context, f func(prefix string)) error {
	for _, family := range t.families {
		if err := family.WalkRows(ctx, func(prefix []byte) { f(string(prefix)) }); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Footprint returns the bytes of all that is not of one family: keys, names and heads.
func (t *States) Footprint() int {
	t.mu.Lock()
	groups := slices.Clone(t.groups)
	n := keySize*(len(t.agents)+len(t.workspaces)) + nameSize*(len(t.names)+len(t.collided)) + headSize*len(t.heads)
	t.mu.Unlock()
	for _, g := range groups {
		n += int(unsafe.Sizeof(*g)) + g.Footprint()
	}
	return n
}

// replaceLocked replaces the series of the key by those of the change.
func (t *States) replaceLocked(key agent.SeriesKey, c *change) {
	c.beginLocked(t, key)
	for i := range c.series {
		t.setLocked(key, c, &c.series[i])
	}
	for i := range c.owned {
		if o := &c.owned[i]; !o.kept {
			t.releaseLocked(o)
		}
	}
	t.stopWaitingLocked(key, func(l line) bool { return !slices.Contains(c.waits, l) })
	t.setPlacesLocked(key, c)
}

// stopWaitingLocked has the key wait no more for the lines for which stop is true.
func (t *States) stopWaitingLocked(key agent.SeriesKey, stop func(line) bool) {
	if len(t.waits) == 0 {
		return
	}
	waits := slices.DeleteFunc(t.waits[key], func(l line) bool {
		if !stop(l) {
			return false
		}
		left := slices.DeleteFunc(t.waiting[l], func(v value) bool { return v.key == key })
		if t.waiting[l] = left; len(left) == 0 {
			delete(t.waiting, l)
		}
		return true
	})
	if t.waits[key] = waits; len(waits) == 0 {
		delete(t.waits, key)
	}
}

// setLocked sets one series of the change.
func (t *States) setLocked(key agent.SeriesKey, c *change, s *rendered) {
	h := t.headLocked(s.family, s.head)
	at := c.placeLocked(t, s)
	if o := c.ownedLine(at.name, h.Head); o != nil {
		if !o.kept { // else it has the labels of an earlier one
			o.kept = true
			o.Rows.Set(o.Slot, at.owner, s.value)
		}
		return
	}
	l := line{at.name, h.Head}
	if slices.Contains(c.waits, l) {
		return
	}
	if len(t.waits[key]) > 0 {
		if i := slices.IndexFunc(t.waiting[l], func(v value) bool { return v.key == key }); i >= 0 {
			t.waiting[l][i].value = s.value
			c.waits = append(c.waits, l)
			return
		}
	}
	g := t.groupOf(at.name)
	if !at.added {
		if g.Has(s.family, h.Head, at.name.number()) {
			t.waiting[l] = append(t.waiting[l], value{key, at.owner, s.value})
			t.waits[key] = append(t.waits[key], l)
			c.waits = append(c.waits, l)
			return
		}
	}
	h.lines++
	t.lines++
	row := s.family.AddRow(g.Group, h.Head, at.name.number(), at.owner, s.value)
	c.owned = append(c.owned, owned{Owned: row, name: at.name, kept: true})
}

// releaseLocked takes a line from the key that has it. The first that waits gets it.
func (t *States) releaseLocked(o *owned) {
	l := line{o.name, o.Head}
	if waiting := t.waiting[l]; len(waiting) > 0 {
		next := waiting[0]
		o.Rows.Set(o.Slot, next.owner, next.value)
		t.stopWaitingLocked(next.key, func(o line) bool { return o == l })
		return
	}
	if g := t.groupOf(o.name); g.HasOneRow(o.name.number()) {
		t.removeNameLocked(o.name)
	}
	o.Rows.Retire(o.Slot)
	t.lines--
	h := t.heads[o.Head.Text()]
	if h.lines--; h.lines == 0 {
		delete(t.heads, o.Head.Text())
	}
}

// headLocked returns the head with that text. It may be new: then it has no lines.
func (t *States) headLocked(f *arena.Family, text []byte) *head {
	h := t.heads[string(text)]
	if h == nil {
		h = &head{Head: arena.NewHead(f, string(text))}
		t.heads[h.Text()] = h
	}
	return h
}

// placesOf returns the map that has the key's place.
func (t *States) placesOf(key agent.SeriesKey) map[agent.ID]place {
	if key.Workspace {
		return t.workspaces
	}
	return t.agents
}

// setPlacesLocked notes the places that the key has after the change.
func (t *States) setPlacesLocked(key agent.SeriesKey, c *change) {
	var first *place
	var further []place
	for i, p := range c.places {
		has := slices.ContainsFunc(c.owned, func(o owned) bool { return o.kept && o.name == p.name }) ||
			slices.ContainsFunc(c.waits, func(l line) bool { return l.name == p.name })
		switch {
		case !has:
		case first == nil:
			first = &c.places[i].place
		default:
			further = append(further, p.place)
		}
	}
	if of := t.placesOf(key); first != nil {
		of[key.ID] = *first
	} else {
		delete(of, key.ID)
	}
	if len(further) > 0 {
		t.further[key] = further
	} else if len(t.further) > 0 {
		delete(t.further, key)
	}
}
