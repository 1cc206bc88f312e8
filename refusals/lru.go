package refusals

import (
	"container/list"
	"iter"
	"unsafe"
)

// entryBytes is about what an entry takes beside its value: of the list, and of the map.
const entryBytes = int(unsafe.Sizeof(list.Element{})) + 100

// lru has values by key, in the order of their last use.
type lru[K comparable, V any] struct {
	entries map[K]*list.Element
	order   *list.List // of lruEntry[K, V], the newest first
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any]() lru[K, V] {
	return lru[K, V]{entries: make(map[K]*list.Element), order: list.New()}
}

func (l *lru[K, V]) len() int { return len(l.entries) }

// get returns a value, which is the newest from now on.
func (l *lru[K, V]) get(key K) (v V, found bool) {
	e, found := l.entries[key]
	if !found {
		return v, false
	}
	l.order.MoveToFront(e)
	return e.Value.(lruEntry[K, V]).value, true
}

// peek returns a value, whose place it does not change.
func (l *lru[K, V]) peek(key K) (v V, found bool) {
	e, found := l.entries[key]
	if !found {
		return v, false
	}
	return e.Value.(lruEntry[K, V]).value, true
}

// put adds a value of a new key.
func (l *lru[K, V]) put(key K, v V) { l.entries[key] = l.order.PushFront(lruEntry[K, V]{key, v}) }

// removeOldest removes the value whose last use is the oldest. There must be one.
func (l *lru[K, V]) removeOldest() (K, V) {
	e := l.order.Remove(l.order.Back()).(lruEntry[K, V])
	delete(l.entries, e.key)
	return e.key, e.value
}

// newestFirst goes through all values.
func (l *lru[K, V]) newestFirst() iter.Seq[V] {
	return func(yield func(V) bool) {
		for e := l.order.Front(); e != nil; e = e.Next() {
			if !yield(e.Value.(lruEntry[K, V]).value) {
				return
			}
		}
	}
}
