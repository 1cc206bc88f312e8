package batcher

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// The age is that of the oldest entry, whatever values replaced it, while it waits, is
// written and fails. The time of flushes grows while one runs.
func TestLoad(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		b := newBatcher(t, store, Options{Random: func() float64 { return 0.5 }})
		requireLoad := func(oldest, flushing time.Duration) {
			t.Helper()
			synctest.Wait()
			age, busy := b.Load(time.Now())
			require.Equal(t, []time.Duration{oldest, flushing}, []time.Duration{age, busy})
		}
		defer run(t, b)()
		requireLoad(0, 0)
		sequence := int64(0)
		add := func(entries ...string) {
			sequence++
			b.Add(time.Now(), report(id(1), 1, sequence, nil, entries...))
		}
		time.Sleep(time.Second)
		add("a=1")
		time.Sleep(2 * time.Second)
		add("a=2", "b=1")
		requireLoad(2*time.Second, 0)

		// A flush of 3 s that fails: what is added meanwhile is younger.
		slow := func(err error) func(context.Context, []agent.Metadata) error {
			return func(context.Context, []agent.Metadata) error { time.Sleep(3 * time.Second); return err }
		}
		store.setBefore(slow(errDown))
		time.Sleep(4 * time.Second) // it began after 2 of them
		requireLoad(6*time.Second, 2*time.Second)
		add("a=3", "c=1")
		time.Sleep(time.Second)
		requireLoad(7*time.Second, 3*time.Second)
		store.setBefore(slow(nil))
		time.Sleep(2 * time.Second) // the next one began, and has not ended
		age, busy := b.Load(time.Now())
		require.Equal(t, 9*time.Second, age)
		require.Greater(t, busy, 4*time.Second)
		time.Sleep(4 * time.Second)
		requireLoad(0, 6*time.Second)

		// It is no load that one agent's values are refused.
		store.mu.Lock()
		store.before, store.rejects = nil, func(agent.Metadata) bool { return true }
		store.mu.Unlock()
		add("a=4")
		time.Sleep(5 * time.Second)
		add("a=5")
		time.Sleep(time.Second)
		requireLoad(0, 6*time.Second)
	})
}
