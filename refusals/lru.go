package refusals

import (
	"math"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// entryBytes is about what an entry of an LRU takes beside its value, with its place in
// the map.
const entryBytes = 200

// newLRU returns an LRU that evicts nothing by itself.
func newLRU[K comparable, V any]() *simplelru.LRU[K, V] {
	l, err := simplelru.NewLRU[K, V](math.MaxInt, nil)
	if err != nil {
		panic(err) // its size is above 0
	}
	return l
}
