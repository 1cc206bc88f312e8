package batcher

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/store"
)

// run starts b and returns what stops it and waits for its end.
func run(t *testing.T, b *Batcher) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
		requireLaw(t, b)
	})
}

// flushes returns when the store was called and with how many rows.
func (s *fakeStore) flushes(start time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, c := range s.calls {
		out = append(out, fmt.Sprintf("%v: %d", c.at.Sub(start), len(c.rows)))
	}
	return out
}

func (s *fakeStore) setBefore(f func(context.Context, []agent.Metadata) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// addKeys adds n keys that were never there, one report for each.
func addKeys(b *Batcher, next *int, n int) {
	for range n {
		*next++
		b.Add(time.Now(), report(id(1), 1, int64(*next), nil, fmt.Sprintf("%d=1", *next)))
	}
}

func TestSchedule(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, start, next := &fakeStore{}, time.Now(), 0
		b := newBatcher(t, store, Options{BatchSize: 10})
		stop := run(t, b)
		time.Sleep(7 * time.Second)
		require.Empty(t, store.flushes(start), "nothing waits: no call")
		addKeys(b, &next, 9)
		synctest.Wait()
		require.Empty(t, store.flushes(start))
		// Full: at once, and a batch is what fits.
		addKeys(b, &next, 1)
		synctest.Wait()
		require.Equal(t, []string{"7s: 10"}, store.flushes(start))
		addKeys(b, &next, 5)
		b.Add(time.Now(), report(id(2), 1, 1, nil, slices.Repeat([]string{"same=1"}, 30)...))
		time.Sleep(time.Second)
		require.Equal(t, []string{"7s: 10"}, store.flushes(start))
		var many []string
		for i := range 20 {
			many = append(many, fmt.Sprintf("many%d=1", i))
		}
		b.Add(time.Now(), report(id(2), 1, 2, nil, many...))
		synctest.Wait()
		require.Equal(t, []string{"7s: 10", "8s: 10", "8s: 10"}, store.flushes(start))
		// The schedule goes on as if there had been none: nothing waits longer
		// than the interval.
		time.Sleep(20 * time.Second)
		require.Equal(t, []string{"7s: 10", "8s: 10", "8s: 10", "10s: 6"}, store.flushes(start))
		stop()
		require.Len(t, store.flushes(start), 4, "nothing waits at the end: no call")
	})
}

// What arrives during a scheduled flush waits for the next one.
func TestScheduledFlushEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, start, next := &fakeStore{}, time.Now(), 0
		b := newBatcher(t, store, Options{BatchSize: 10})
		store.before = func(context.Context, []agent.Metadata) error {
			addKeys(b, &next, 1)
			return nil
		}
		stop := run(t, b)
		addKeys(b, &next, 9)
		time.Sleep(11 * time.Second)
		store.setBefore(nil)
		stop()
		require.Equal(t, []string{"5s: 9", "10s: 1", "11s: 1"}, store.flushes(start))
	})
}

func TestRetries(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, next := &fakeStore{}, 0
		store.before = func(context.Context, []agent.Metadata) error { return errDown }
		var logged bytes.Buffer
		b, err := New(store, &fakePublisher{}, Options{BatchSize: 10, MaxPendingPerAgent: 2000}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&logged, nil)))
		require.NoError(t, err)
		stop := run(t, b)
		// A full batch each second hammers the database no more than the
		// schedule of the retries.
		for range 120 {
			addKeys(b, &next, 10)
			time.Sleep(time.Second)
			synctest.Wait()
			require.ErrorIs(t, b.Healthy(), errDown)
		}
		store.mu.Lock()
		calls := slices.Clone(store.calls)
		store.mu.Unlock()
		require.Greater(t, len(calls), 10)
		for i := 1; i < len(calls); i++ {
			gap := calls[i].at.Sub(calls[i-1].at)
			longest := min(minRetry<<(i-1), maxRetry)
			require.GreaterOrEqual(t, gap, longest/2)
			require.Less(t, gap, longest)
			require.Equal(t, texts(calls[0].rows), texts(calls[i].rows), "the oldest keep their place")
		}
		store.setBefore(nil)
		time.Sleep(maxRetry)
		synctest.Wait()
		require.NoError(t, b.Healthy())
		require.Zero(t, b.waiting(), "all at once")
		require.Contains(t, logged.String(), "is written again")
		require.Len(t, store.rows, 1200)
		// Then full batches are flushed at once again.
		addKeys(b, &next, 10)
		synctest.Wait()
		require.Len(t, store.rows, 1210)
		stop()
	})
}

// A store and a publisher that do not answer are given up.
func TestTimeouts(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, start, next := &fakeStore{}, time.Now(), 0
		store.before = func(ctx context.Context, _ []agent.Metadata) error {
			<-ctx.Done()
			return ctx.Err()
		}
		publisher := &hungPublisher{}
		b, err := New(store, publisher, Options{}, prometheus.NewRegistry(), quiet)
		require.NoError(t, err)
		addKeys(b, &next, 1)
		require.ErrorIs(t, b.flushWaiting(t.Context(), t.Context()), context.DeadlineExceeded)
		require.Equal(t, 10*time.Second, time.Since(start))
		require.ErrorIs(t, b.Healthy(), context.DeadlineExceeded)
		store.setBefore(nil)
		require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
		require.Equal(t, 15*time.Second, time.Since(start))
		require.Zero(t, b.waiting())
	})
}

type hungPublisher struct{}

func (*hungPublisher) PublishMetadata(ctx context.Context, _ []agent.ID) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestShutdown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, start, next := &fakeStore{}, time.Now(), 0
		reg := prometheus.NewRegistry()
		b, err := New(store, &fakePublisher{}, Options{BatchSize: 10}, reg, quiet)
		require.NoError(t, err)
		stop := run(t, b)
		addKeys(b, &next, 9)
		b.Add(time.Now(), report(id(2), 1, 1, nil, "a=1"))
		synctest.Wait()
		addKeys(b, &next, 9)
		// A fault that passes.
		store.setBefore(func(context.Context, []agent.Metadata) error {
			store.setBefore(nil)
			return errDown
		})
		stop()
		require.Len(t, store.rows, 19)
		require.Zero(t, b.waiting())
		require.Less(t, time.Since(start), time.Second)
		batches := gather(t, reg)["coderd_agentapi_metadata_batches_total"].GetMetric()
		require.Equal(t, "capacity 1, shutdown 1", fmt.Sprintf("%s %v, %s %v",
			batches[0].GetLabel()[0].GetValue(), batches[0].GetCounter().GetValue(),
			batches[2].GetLabel()[0].GetValue(), batches[2].GetCounter().GetValue()))
	})
}

// A database that does not answer delays the end by ShutdownTimeout.
func TestShutdownIsBounded(t *testing.T) {
	for _, flushUnderWay := range []bool{false, true} {
		t.Run(strconv.FormatBool(flushUnderWay), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				store, next := &fakeStore{}, 0
				store.before = func(ctx context.Context, _ []agent.Metadata) error {
					<-ctx.Done()
					return ctx.Err()
				}
				var logged bytes.Buffer
				b, err := New(store, &fakePublisher{}, Options{BatchSize: 10}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&logged, nil)))
				require.NoError(t, err)
				stop := run(t, b)
				addKeys(b, &next, 9)
				if flushUnderWay {
					addKeys(b, &next, 1)
				}
				synctest.Wait()
				require.NoError(t, b.Healthy(), "not known yet")
				began := time.Now()
				stop()
				require.Equal(t, 15*time.Second, time.Since(began))
				require.Contains(t, logged.String(), fmt.Sprintf("entries=%d", next))
				require.Equal(t, next, b.waiting())
			})
		})
	}
}

// A flush that is under way when the end comes is not broken off.
func TestShutdownDuringFlush(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store, start, next := &fakeStore{}, time.Now(), 0
		store.before = func(ctx context.Context, _ []agent.Metadata) error {
			select {
			case <-time.After(3 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		b := newBatcher(t, store, Options{BatchSize: 10})
		stop := run(t, b)
		for range 3 {
			addKeys(b, &next, 10)
		}
		synctest.Wait()
		stop()
		require.Equal(t, []string{"0s: 10", "3s: 10", "6s: 10"}, store.flushes(start))
		require.Len(t, store.rows, 30)
	})
}

// Reports from many streams, removals and faults at once.
func TestConcurrent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const streams, reports = 8, 200
		store := &fakeStore{}
		store.before = func(context.Context, []agent.Metadata) error {
			time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
			if rand.IntN(3) == 0 {
				return errDown
			}
			return nil
		}
		b := newBatcher(t, store, Options{BatchSize: 20, FlushInterval: time.Second})
		stop := run(t, b)
		trackers := make([]*fakeTracker, streams)
		var group sync.WaitGroup
		for n := range byte(streams) {
			trackers[n] = &fakeTracker{}
			group.Go(func() {
				for i := range int64(reports) {
					b.Add(time.Now(), report(id(n), 1, i+1, trackers[n], fmt.Sprintf("a=%d", i), fmt.Sprintf("b%d=%d", i%7, i)))
					if n == 0 && i%50 == 0 {
						b.Remove(id(0))
					}
					if i%10 == 0 {
						requireLaw(t, b)
						time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
					}
				}
			})
		}
		group.Wait()
		store.setBefore(nil)
		stop()
		_, pending := b.counts()
		require.Zero(t, pending)
		for n, tracker := range trackers {
			require.Empty(t, tracker.sequences())
			require.Empty(t, tracker.wrong)
			require.Equal(t, strconv.Itoa(reports-1), store.rows[rowKey{id(byte(n)), "a"}].Value)
		}
	})
}

// The whole way on the real database, with an agent that it does not know.
func TestSQLite(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "a.db")}, prometheus.NewRegistry(), quiet)
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		var change agent.Change
		var known []agent.ID
		for n := range byte(100) {
			known = append(known, id(n))
			change.Agents = append(change.Agents, agent.Registration{ID: id(n), Workspace: agent.Workspace{ID: id(200)}})
		}
		registrations, err := s.Registrations(t.Context(), 0)
		require.NoError(t, err)
		_, err = s.ApplyChange(t.Context(), registrations.Revision, change)
		require.NoError(t, err)

		publisher := &fakePublisher{}
		b, err := New(s, publisher, Options{}, prometheus.NewRegistry(), quiet)
		require.NoError(t, err)
		stop := run(t, b)
		tracker, unknown := &fakeTracker{}, &fakeTracker{}
		for round := range int64(3) {
			for _, a := range known {
				var entries []string
				for key := range 10 {
					entries = append(entries, fmt.Sprintf("%d=%d", key, round))
				}
				require.Empty(t, b.Add(time.Now(), report(a, 1, round+1, tracker, entries...)))
			}
			b.Add(time.Now(), report(id(250), 1, round+1, unknown, "a=1"))
			synctest.Wait()
		}
		b.Add(time.Now(), report(id(0), 0, 1, nil, "0=older than the stored"))
		stop()

		found, _, err := s.MetadataWithin(t.Context(), append(known, id(250)), 1<<30)
		require.NoError(t, err)
		require.Len(t, found, 1000)
		for _, m := range found {
			require.Equal(t, "2", m.Value)
			require.Equal(t, agent.Order{Epoch: 1, Sequence: 3}, m.Order)
		}
		require.Empty(t, tracker.sequences())
		require.Empty(t, unknown.sequences())
		require.Equal(t, refusedByStore("a"), unknown.resolved[0].Refusal)
		require.NoError(t, b.Healthy())
		require.NotEmpty(t, publisher.agents)
		l, pending := b.counts()
		require.Zero(t, pending)
		require.Equal(t, int64(3004), l.received)
		require.NotZero(t, l.dropped[dropRejected])
	})
}

// While many entries wait, flushes write more at once, up to a bound. A database that is slow
// or fails is not given more.
func TestBatchesGrow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			ready int
			takes time.Duration
			want  []int
		}{
			{ready: 25, want: []int{10, 10, 5}},
			{ready: 40, want: []int{10, 10, 10, 10}},
			{ready: 60, want: []int{15, 11, 10, 10, 10, 4}},
			{ready: 400, want: []int{80, 80, 60, 45, 33, 25, 19, 14, 11, 10, 10, 10, 3}},
			{ready: 60, takes: growthTime, want: []int{15, 11, 10, 10, 10, 4}},
			{ready: 60, takes: growthTime + 1, want: []int{15, 10, 10, 10, 10, 5}},
		} {
			s := &fakeStore{before: func(context.Context, []agent.Metadata) error {
				time.Sleep(c.takes)
				return nil
			}}
			b := newBatcher(t, s, Options{BatchSize: 10, MaxPending: 1000, MaxPendingPerAgent: 1000})
			for i := range c.ready {
				b.Add(now, report(id(1), 1, int64(i), nil, fmt.Sprint(i, "=1")))
			}
			require.NoError(t, b.flushWaiting(t.Context(), t.Context()))
			var sizes []int
			for _, call := range s.calls {
				sizes = append(sizes, len(call.rows))
			}
			require.Equal(t, c.want, sizes, c)
		}
	})
}
