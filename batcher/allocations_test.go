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
