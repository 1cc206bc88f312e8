package states

import (
	"slices"

	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

func (t *States) groupOf(n name) *group { return t.groups[n>>nameBits] }

// findNameLocked returns the name with that text; ok is false if there is none.
func (t *States) findNameLocked(hash uint64, text []byte) (found name, ok bool) {
	if n, ok := t.names[hash]; ok && t.groupOf(n).HasName(n.number(), text) {
		return n, true
	}
	if len(t.collided) > 0 {
		found, ok = t.collided[string(text)]
	}
	return found, ok
}

// addNameLocked adds a name to a group that has room.
func (t *States) addNameLocked(hash uint64, text []byte, key metrics.ShardKey) name {
	g := t.roomyLocked()
	n := name(g.number<<nameBits | uint32(g.AddName(text, key)))
	if _, collides := t.names[hash]; collides {
		t.collided[string(text)] = n
	} else {
		t.names[hash] = n
	}
	return n
}

// removeNameLocked forgets a name, whose last line is to be removed.
func (t *States) removeNameLocked(n name) {
	g := t.groupOf(n)
	text := g.AppendName(nil, n.number())
	hash := t.hash(text)
	if of, ok := t.names[hash]; ok && of == n {
		delete(t.names, hash)
	} else {
		delete(t.collided, string(text))
	}
	if !g.listed {
		g.listed = true
		t.roomy = append(t.roomy, g.number)
	}
}

// roomyLocked returns a group that has room. One that waits for a scrape to free its retired
// rows stays among those that may have.
func (t *States) roomyLocked() *group {
	for i := len(t.roomy) - 1; i >= 0; i-- {
		g := t.groups[t.roomy[i]]
		now, later := g.HasRoom()
		switch last := len(t.roomy) - 1; {
		case now:
			t.roomy[i], t.roomy[last] = t.roomy[last], t.roomy[i] // it is tried first from now on
			return g
		case !later:
			g.listed = false
			t.roomy = slices.Delete(t.roomy, i, i+1)
		}
	}
	g := &group{Group: arena.NewGroup(t.generations), number: uint32(len(t.groups)), listed: true}
	t.groups = append(t.groups, g)
	t.roomy = append(t.roomy, g.number)
	return g
}
