//go:build !race

package batcher

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// With the race detector pools drop things at random.

// An entry costs nothing but a copy of each text that is new.
func TestAddAllocations(t *testing.T) {
	b := newBatcher(t, &switchStore{}, Options{})
	b.publisher = nullPublisher{}
	r := benchReports(1)[0]
	values := [2]string{r.Entries[0].Value, "1.42 load, 3.2/16 GiB memory, 41%"}
	add := func(changed int) {
		r.Order.Sequence++
		for i := range changed {
			r.Entries[i].Value = values[r.Order.Sequence%2]
		}
		if refused := b.Add(now, r); refused != nil {
			t.Error(refused)
		}
	}
	flush := func() {
		if _, err := b.flushReady(t.Context(), flushScheduled, 500); err != nil {
			t.Error(err)
		}
	}
	add(0)
	for _, changed := range []int{0, 1, 10} {
		require.EqualValues(t, changed, testing.AllocsPerRun(100, func() { add(changed) }))
	}
	flush()
	flushes := testing.AllocsPerRun(100, func() { add(0); flush() }) - 20
	require.LessOrEqual(t, flushes, 10.0, "of a new one the key and the value")

	// There is nothing to copy of what is cut to what it was.
	r.Entries[0].Value = strings.Repeat("x", 3000)
	add(0)
	require.Less(t, testing.AllocsPerRun(100, func() { add(0) }), 5.0, "the error text")
}

// However much is pending, a flush of 500 rows costs a few allocations: of the
// contexts of its two calls.
func TestFlushAllocations(t *testing.T) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		store := &switchStore{}
		b := newBatcher(t, store, Options{})
		b.publisher = nullPublisher{}
		for _, r := range benchReports(n / 10) {
			b.Add(now, r)
		}
		store.err = errDown
		require.LessOrEqual(t, testing.AllocsPerRun(20, func() {
			_, err := b.flushReady(t.Context(), flushScheduled, 500)
			require.ErrorIs(t, err, errDown)
		}), 10.0, "%d pending, which come back", n)
		// Twice, as the first one, which makes the buffers, is not counted.
		store.err = nil
		require.LessOrEqual(t, testing.AllocsPerRun(1, func() {
			_, err := b.flushReady(t.Context(), flushScheduled, 500)
			require.NoError(t, err)
		}), 20.0, "%d pending", n)
		_, pending := b.counts()
		require.Equal(t, n-1000, pending)
	}
}
