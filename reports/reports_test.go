package reports

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// replica is Reports on a database in memory.
type replica struct {
	*Reports
	database *memstore.Database
	stop     func()
}

func startReplica(t *testing.T, database *memstore.Database, opts Options, mem memstore.Options) *replica {
	t.Helper()
	r, err := New(database.Open(mem), opts, prometheus.NewPedanticRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, r.Load(t.Context()))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { require.NoError(t, r.Run(ctx)) })
	stop := sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return &replica{r, database, stop}
}

// watcher is a stream of a subscription.
type watcher struct {
	acks     chan int64
	messages chan agent.ReportMessage
	ended    chan error
	cancel   func()
}

func (r *replica) watch(t *testing.T, w agent.ReportWatch) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	out := &watcher{make(chan int64), make(chan agent.ReportMessage, 10), make(chan error, 1), cancel}
	go func() {
		out.ended <- r.Serve(ctx, w, out.acks, func(m agent.ReportMessage) error {
			out.messages <- m
			return nil
		})
	}()
	t.Cleanup(cancel)
	return out
}

// report has the replica take in a report of agent n.
func (r *replica) report(n byte, sequence, bytes int64) {
	r.Add(&agent.ReportSum{
		Agent: agent.ID{n}, Instance: agent.Instance(r.opts.Load().ID), Order: agent.Order{Epoch: 1, Sequence: sequence},
		Reports: 1, RxBytes: bytes, Data: []byte{byte(sequence)},
	})
}

// Without a subscription nothing is kept. With one a report is delivered within two
// seconds, and right after its write if this replica has the stream.
func TestReportsAreDelivered(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		one := startReplica(t, database, Options{Shared: true}, memstore.Options{})
		two := startReplica(t, database, Options{Shared: true}, memstore.Options{})
		require.False(t, one.Wanted())
		one.report(1, 1, 1)
		w := one.watch(t, agent.ReportWatch{Name: "a"})
		first := <-w.messages
		require.Empty(t, first.Sums)
		require.NotZero(t, first.Since)
		require.True(t, two.Wanted(), "it is confirmed")

		began := time.Now()
		two.report(1, 2, 2)
		two.report(1, 4, 4)
		one.report(1, 3, 8)
		m := <-w.messages
		require.LessOrEqual(t, time.Since(began), 2*batchInterval)
		require.Equal(t, int64(1), m.Position.Number)
		got := m.Sums[0].RxBytes
		w.acks <- 1
		for got != 14 {
			m = <-w.messages
			got += m.Sums[0].RxBytes
			w.acks <- m.Position.Number
		}
		require.Equal(t, 3.0, testutil.ToFloat64(one.metrics.delivered))
		synctest.Wait()
		require.Empty(t, database.ReportSums())
		close(w.acks)
		require.NoError(t, <-w.ended)
	})
}

// drain acks and returns what comes within a minute.
func drain(w *watcher) func(yield func(agent.ReportMessage) bool) {
	return func(yield func(agent.ReportMessage) bool) {
		timer := time.NewTimer(time.Minute)
		defer timer.Stop()
		for {
			select {
			case m := <-w.messages:
				w.acks <- m.Position.Number
				if !yield(m) {
					return
				}
			case <-timer.C:
				return
			}
		}
	}
}
