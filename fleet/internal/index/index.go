// Package index finds elements by keys that they have themselves. It stores pointers and
// hashes only: some 17 bytes an element, where a map takes 1.5 times the key and the pointer.
package index

import (
	"hash/maphash"
	"iter"
)

const (
	// shards bound how long an insertion may take: it moves the elements of one shard. With
	// 1,000,000 elements, these are 16,000, which takes some 0.5 ms.
	shards    = 1 << shardBits
	shardBits = 6
	// A shard grows by a quarter when four of five slots are used. So on average 0.72 are.
	usedOf, slotsOf = 4, 5
	minSlots        = 8
)

// Table has elements with unique keys. A key must not change while its element is in the
// table. Readers may be concurrent, without a writer.
type Table[K comparable, E any] struct {
	seed   maphash.Seed // keys cannot be chosen to collide
	key    func(*E) K
	shards [shards]shard[E]
	count  int
}

// shard is an open-addressed table with linear probing. An element stands in the first free
// slot from its home on, and no free slot is between.
type shard[E any] struct {
	elements []*E
	// hashes has the part of each element's hash that is not of the shard; 0: the slot is
	// free. So elements are moved without their keys, and a search looks at no element but
	// the one that it finds.
	hashes []uint32
	count  int
}

// New returns an empty table of elements with the key that key returns.
func New[K comparable, E any](key func(*E) K) *Table[K, E] {
	return &Table[K, E]{seed: maphash.MakeSeed(), key: key}
}

// Len returns the number of elements.
func (t *Table[K, E]) Len() int { return t.count }

// Get returns the element with the key; nil: there is none.
func (t *Table[K, E]) Get(key K) *E {
	s, _, at := t.find(key)
	if at < 0 {
		return nil
	}
	return s.elements[at]
}

// Put adds an element, in the place of one with an equal key.
func (t *Table[K, E]) Put(e *E) {
	s, hash, at := t.find(t.key(e))
	if at >= 0 {
		s.elements[at] = e
		return
	}
	if (s.count+1)*slotsOf > len(s.elements)*usedOf {
		s.grow()
	}
	s.put(hash, e)
	t.count++
}

// Delete removes the element with the key, if there is one.
func (t *Table[K, E]) Delete(key K) {
	s, _, at := t.find(key)
	if at < 0 {
		return
	}
	// Elements behind it move up, unless that were before their home.
	for next := s.after(at); s.hashes[next] != 0; next = s.after(next) {
		if !isBetween(at, s.home(s.hashes[next]), next) {
			s.elements[at], s.hashes[at] = s.elements[next], s.hashes[next]
			at = next
		}
	}
	s.elements[at], s.hashes[at] = nil, 0
	s.count--
	t.count--
	if s.count == 0 {
		*s = shard[E]{}
	}
}

// isBetween returns whether home is behind at and not behind next, in a circle.
func isBetween(at, home, next int) bool {
	if at <= next {
		return at < home && home <= next
	}
	return at < home || home <= next
}

// All iterates over the elements in no order. The table must not be changed meanwhile.
func (t *Table[K, E]) All() iter.Seq[*E] {
	return func(yield func(*E) bool) {
		for i := range t.shards {
			for _, e := range t.shards[i].elements {
				if e != nil && !yield(e) {
					return
				}
			}
		}
	}
}

// Parts is the number of parts of a table.
const Parts = shards

// Part returns the elements of one part, from 0 to Parts-1, in no order. All parts together
// have all elements. The slice is the caller's: the table may change between two parts.
func (t *Table[K, E]) Part(n int) []*E {
	s := &t.shards[n]
	part := make([]*E, 0, s.count)
	for _, e := range s.elements {
		if e != nil {
			part = append(part, e)
		}
	}
	return part
}

// find returns where the element with the key is, and the hash of the key within its shard.
// A negative place: the element is nowhere.
func (t *Table[K, E]) find(key K) (s *shard[E], hash uint32, at int) {
	whole := maphash.Comparable(t.seed, key)
	s, hash = &t.shards[whole>>(64-shardBits)], uint32(whole)|1
	if s.count == 0 {
		return s, hash, -1
	}
	for at := s.home(hash); s.hashes[at] != 0; at = s.after(at) {
		if s.hashes[at] == hash && t.key(s.elements[at]) == key {
			return s, hash, at
		}
	}
	return s, hash, -1
}

func (s *shard[E]) grow() {
	slots := max(minSlots, len(s.elements)+len(s.elements)/4)
	elements, hashes := s.elements, s.hashes
	s.elements, s.hashes, s.count = make([]*E, slots), make([]uint32, slots), 0
	for i, hash := range hashes {
		if hash != 0 {
			s.put(hash, elements[i])
		}
	}
}

// put adds an element to a shard that has room for it.
func (s *shard[E]) put(hash uint32, e *E) {
	at := s.home(hash)
	for s.hashes[at] != 0 {
		at = s.after(at)
	}
	s.elements[at], s.hashes[at] = e, hash
	s.count++
}

// home is the slot of a hash: slots are in the order of the hashes.
func (s *shard[E]) home(hash uint32) int {
	return int(uint64(hash) * uint64(len(s.elements)) >> 32)
}

func (s *shard[E]) after(at int) int {
	if at++; at < len(s.elements) {
		return at
	}
	return 0
}
