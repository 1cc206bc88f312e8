package index

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type element struct {
	key   int
	value int
}

func keyOf(e *element) int { return e.key }

// A table does what a map does.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := New(keyOf)
		model := make(map[int]*element)
		keys := rapid.IntRange(0, rapid.SampledFrom([]int{3, 50, 2000}).Draw(t, "keys"))
		for range rapid.IntRange(0, 1000).Draw(t, "steps") {
			key := keys.Draw(t, "key")
			if rapid.IntRange(0, 2).Draw(t, "step") == 0 {
				table.Delete(key)
				delete(model, key)
			} else {
				e := &element{key, len(model)}
				table.Put(e)
				model[key] = e
			}
			if table.Get(key) != model[key] {
				t.Fatalf("key %d: got %v, want %v", key, table.Get(key), model[key])
			}
		}
		requireEqual(t, model, table)
	})
}

func requireEqual(t require.TestingT, model map[int]*element, table *Table[int, element]) {
	require.Equal(t, len(model), table.Len())
	got, n := make(map[int]*element), 0
	for e := range table.All() {
		got[e.key] = e
		n++
	}
	require.Equal(t, len(model), n)
	require.True(t, maps.Equal(model, got))
	clear(got)
	for part := range Parts {
		for _, e := range table.Part(part) {
			got[e.key] = e
			n--
		}
	}
	require.Zero(t, n)
	require.True(t, maps.Equal(model, got))
	for key, e := range model {
		if table.Get(key) != e {
			require.Same(t, e, table.Get(key))
		}
	}
}

// What is deleted of a full table leaves no element that is not found.
func TestTableThatShrinks(t *testing.T) {
	table := New(keyOf)
	model := make(map[int]*element)
	for key := range 10_000 {
		model[key] = &element{key: key}
		table.Put(model[key])
	}
	keys := slices.Collect(maps.Keys(model))
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	for len(keys) > 0 {
		for _, key := range keys[:1000] {
			table.Delete(key)
			delete(model, key)
		}
		keys = keys[1000:]
		requireEqual(t, model, table)
	}
	for i := range table.shards {
		require.Nil(t, table.shards[i].elements, "an empty table retains no memory")
	}
}

func TestAllEndsEarly(t *testing.T) {
	table := New(keyOf)
	for key := range 10 {
		table.Put(&element{key: key})
	}
	n := 0
	for range table.All() {
		if n++; n == 3 {
			break
		}
	}
	require.Equal(t, 3, n)
}

// An element takes at most 20 bytes, whatever its key and however many there are.
func TestBytes(t *testing.T) {
	type keyed struct{ key [32]byte }
	table := New(func(e *keyed) [32]byte { return e.key })
	for n := 1; n <= 100_000; n++ {
		e := &keyed{}
		copy(e.key[:], fmt.Sprint(n))
		table.Put(e)
		if n < 20_000 || n%1000 != 0 {
			continue
		}
		bytes := 0
		for i := range table.shards {
			bytes += cap(table.shards[i].elements)*int(unsafe.Sizeof((*keyed)(nil))) + 4*cap(table.shards[i].hashes)
		}
		require.Less(t, bytes, 20*n, "%d elements", n)
	}
}

func BenchmarkTable(b *testing.B) {
	type keyed struct{ key [32]byte }
	for _, n := range []int{10_000, 50_000, 200_000} {
		elements := make([]*keyed, n)
		for i := range elements {
			elements[i] = &keyed{}
			for j := range elements[i].key {
				elements[i].key[j] = byte(rand.Int())
			}
		}
		b.Run(fmt.Sprintf("table/%d", n), func(b *testing.B) {
			table := New(func(e *keyed) [32]byte { return e.key })
			for _, e := range elements {
				table.Put(e)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if table.Get(elements[i*7919%n].key) == nil {
					b.Fatal("not found")
				}
			}
		})
		b.Run(fmt.Sprintf("map/%d", n), func(b *testing.B) {
			table := make(map[[32]byte]*keyed)
			for _, e := range elements {
				table[e.key] = e
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if table[elements[i*7919%n].key] == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}
