package batcher

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A limit below what is pending refuses only new keys.
func TestReconfigure(t *testing.T) {
	b := newBatcher(t, &fakeStore{}, Options{BatchSize: 3, MaxPending: 10})
	add := func(sequence int64, entries ...string) (refused int) {
		for _, r := range b.Add(time.Now(), report(id(1), 1, sequence, &fakeTracker{}, entries...)) {
			refused += r.Count
		}
		return refused
	}
	require.Zero(t, add(1, "a=1", "b=1", "c=1", "d=1"))
	require.Error(t, b.Reconfigure(Options{BatchSize: 11, MaxPending: 10}))
	require.Equal(t, 10, b.Options().MaxPending, "nothing has changed")
	require.NoError(t, b.Reconfigure(Options{BatchSize: 2, MaxPending: 2}))
	require.Equal(t, 1, add(2, "a=2", "e=1"), "a known key has room")
	require.Equal(t, 4, b.snapshot().pending)
	require.NoError(t, b.Reconfigure(Options{BatchSize: 2, MaxPending: 5}))
	require.Zero(t, add(3, "e=1"))
}
