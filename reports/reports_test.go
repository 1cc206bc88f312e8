package reports

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
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
		Agent: agent.ID{n}, Instance: agent.Instance(r.opts.ID), Order: agent.Order{Epoch: 1, Sequence: sequence},
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

// A batch is written when it is full, or after a second, the oldest first.
func TestBatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		r := startReplica(t, database, Options{}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		time.Sleep(10 * time.Second)
		for n := range batchSize {
			r.Add(&agent.ReportSum{Agent: agent.ID{byte(n >> 8), byte(n)}, Reports: 1})
		}
		synctest.Wait()
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.writes), "it does not wait")
		m := <-w.messages
		require.Len(t, m.Sums, batchSize)
	})
}

// Reports from before a subscription are not told to it.
func TestNewSubscriptionBeginsAtItsStart(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		var mu sync.Mutex
		down := false
		r := startReplica(t, database, Options{}, memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
			mu.Lock()
			defer mu.Unlock()
			if down && doing == "add reports" {
				return memstore.Fault{Err: memstore.ErrRefused}
			}
			return memstore.Fault{}
		}})
		set := func(d bool) {
			mu.Lock()
			defer mu.Unlock()
			down = d
		}
		a := r.watch(t, agent.ReportWatch{Name: "a"})
		<-a.messages
		set(true) // what is reported waits
		r.report(1, 1, 1)
		time.Sleep(10 * time.Second)
		r.report(1, 2, 16) // beside a batch that is frozen
		b := r.watch(t, agent.ReportWatch{Name: "b"})
		<-b.messages
		r.report(1, 3, 2)
		r.report(2, 1, 4)
		set(false)
		time.Sleep(20 * time.Second)
		got := map[byte]int64{}
		for m := range drain(a) {
			for _, s := range m.Sums {
				got[s.Agent[0]] += s.RxBytes
			}
		}
		require.Equal(t, map[byte]int64{1: 19, 2: 4}, got)
		clear(got)
		for m := range drain(b) {
			for _, s := range m.Sums {
				got[s.Agent[0]] += s.RxBytes
			}
		}
		require.Equal(t, map[byte]int64{1: 2, 2: 4}, got)
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

// What is beyond the limits is dropped and counted: of agents that wait for the
// database, and of those that a subscription has.
func TestLimits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		r := startReplica(t, database, Options{MaxPending: 2, MaxSums: 2}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		r.report(1, 1, 1)
		<-w.messages // it is not acked: nothing more is delivered
		dropped := func(reason string) float64 { return testutil.ToFloat64(r.metrics.dropped.WithLabelValues(reason)) }
		for n := range byte(4) {
			r.report(10+n, 1, 1)
			r.report(10+n, 2, 1)
		}
		require.Equal(t, 4.0, dropped(droppedPending))
		time.Sleep(2 * countInterval)
		r.report(20, 1, 1)
		r.report(10, 3, 1)
		time.Sleep(2 * countInterval)
		require.Equal(t, 1.0, dropped(droppedFull))
		require.Equal(t, 2.0, testutil.ToFloat64(r.metrics.sums))
		w.acks <- 1
		m := <-w.messages
		require.Len(t, m.Sums, 2)
		require.Equal(t, int64(3), m.Sums[0].RxBytes, "known ones are added to")
	})
}

// What waits is bounded in bytes, too, also of agents that wait already. One that sent
// much once does not keep its memory.
func TestPendingBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const large = 18_000
		r := startReplica(t, memstore.New(), Options{MaxPendingBytes: 3*sumBytes + 4*reportBytes + large}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		tracker := &tracker{}
		add := func(n byte, sequence int64, size int) {
			r.Add(&agent.ReportSum{
				Agent: agent.ID{n}, Tracker: tracker, Order: agent.Order{Epoch: 1, Sequence: sequence},
				Reports: 1, RxBytes: 1, Data: make([]byte, size),
			})
		}
		dropped := func() float64 { return testutil.ToFloat64(r.metrics.dropped.WithLabelValues(droppedPendingBytes)) }
		add(1, 1, large)
		add(2, 11, 0)
		require.Zero(t, dropped())
		add(3, 21, 2*reportBytes+1)
		require.Equal(t, 1.0, dropped(), "it has no room")
		require.Equal(t, []int64{21}, tracker.take())
		add(2, 12, 1)
		require.Zero(t, dropped()-1, "it waits already, and has room")
		add(2, 13, sumBytes+reportBytes)
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.reduced), "it would become too large")
		add(3, 22, 0)
		require.Equal(t, 2.0, dropped())
		require.Equal(t, []int64{22}, tracker.take())
		add(2, 14, 0)
		add(2, 15, 0)
		require.Empty(t, tracker.take())
		add(2, 16, 0)
		require.Equal(t, []int64{15}, tracker.take(), "without room it is written with the one that came before, which need not be kept")
		add(2, 12, 0)
		add(1, 2, 0)
		require.Equal(t, []int64{1}, tracker.take())
		add(3, 23, 1000)
		require.Equal(t, 2.0, dropped(), "there is room again")
		m := <-w.messages
		require.Len(t, m.Sums, 3)
		require.Equal(t, []int64{2, 6, 1}, []int64{m.Sums[0].Reports, m.Sums[1].Reports, m.Sums[2].Reports})
		require.Empty(t, m.Sums[1].Data)
		require.ElementsMatch(t, []int64{2, 11, 12, 13, 14, 16, 23}, tracker.take())
		r.mu.Lock()
		defer r.mu.Unlock()
		require.Zero(t, r.pendingBytes)
		for _, u := range r.free {
			require.LessOrEqual(t, cap(u.data), maxFreeBytes)
			require.LessOrEqual(t, cap(u.reports), maxFreeReports)
		}
	})
}

// tracker notes the reports that its agent need not keep any more.
type tracker struct {
	mu      sync.Mutex
	written []int64
}

// ReportWritten implements agent.ReportTracker.
func (t *tracker) ReportWritten(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written = append(t.written, sequence)
}

func (t *tracker) take() []int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	written := t.written
	t.written = nil
	return written
}

// A report's tracker is notified when it is written, found written, dropped for good,
// or if there is no subscription. It is not notified if this replica could not write
// the report before its end.
func TestReportWritten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		var down atomic.Bool
		fault := memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
			if down.Load() && doing == "add reports" {
				return memstore.Fault{Err: memstore.ErrRefused}
			}
			return memstore.Fault{}
		}}
		one := startReplica(t, database, Options{Shared: true, MaxPending: 2}, fault)
		two := startReplica(t, database, Options{Shared: true}, memstore.Options{})
		trackers := map[*replica]*tracker{one: {}, two: {}}
		add := func(r *replica, n byte, sequence, bytes int64) {
			r.Add(&agent.ReportSum{
				Agent: agent.ID{n}, Tracker: trackers[r], Order: agent.Order{Epoch: 1, Sequence: sequence},
				Reports: 1, RxBytes: bytes, Data: []byte{1},
			})
		}
		add(one, 1, 1, 1)
		require.Equal(t, []int64{1}, trackers[one].take(), "nobody wants it")
		w := one.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		down.Store(true)
		add(one, 1, 2, 2)
		add(one, 1, 3, 4)
		add(one, 2, 1, 1)
		add(one, 3, 7, 1)
		require.Equal(t, []int64{7}, trackers[one].take(), "it is beyond the limit")
		time.Sleep(10 * time.Second)
		require.Empty(t, trackers[one].take(), "the database does not have them")
		// The stream is cut, and its agent sends them again.
		for sequence := int64(2); sequence < 5; sequence++ {
			add(two, 1, sequence, 1<<(sequence-1))
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, []int64{2, 3, 4}, trackers[two].take())
		add(one, 1, 3, 4) // beside a batch that has it
		down.Store(false)
		time.Sleep(20 * time.Second)
		require.ElementsMatch(t, []int64{2, 3, 3, 1}, trackers[one].take())
		require.Equal(t, 3.0, testutil.ToFloat64(one.metrics.found))
		require.Equal(t, 1.0, testutil.ToFloat64(one.metrics.written))
		got := map[byte]int64{}
		for m := range drain(w) {
			for _, s := range m.Sums {
				got[s.Agent[0]] += s.RxBytes
			}
		}
		require.Equal(t, map[byte]int64{1: 14, 2: 1}, got)

		one.Add(&agent.ReportSum{Agent: agent.ID{1}, Tracker: trackers[one], Order: agent.Order{Sequence: 9}, Reports: 1, ReceivedAt: time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)})
		time.Sleep(5 * time.Second)
		require.Equal(t, []int64{9}, trackers[one].take(), "the database refuses it")
		down.Store(true)
		add(one, 1, 10, 1)
		one.stop()
		require.Empty(t, trackers[one].take(), "it is to be sent elsewhere")
		require.Equal(t, 1.0, testutil.ToFloat64(one.metrics.dropped.WithLabelValues(droppedShutdown)))
	})
}

// Reports of an agent are kept one by one, but for those without counts, and not beyond
// what its client has in flight.
func TestUnwrittenReports(t *testing.T) {
	r, err := New(nil, Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	r.setSubscriptions([]agent.Subscription{{ID: 1}})
	tracker := &tracker{}
	add := func(instance byte, sequence, bytes int64) {
		r.Add(&agent.ReportSum{
			Instance: agent.Instance{instance}, Tracker: tracker, Order: agent.Order{Epoch: int64(instance), Sequence: sequence},
			Reports: 1, RxBytes: bytes, Data: []byte{instance, byte(sequence)},
		})
	}
	type key struct {
		instance       byte
		sequence       int64
		reports, bytes int64
	}
	batch := func() (keys []key, data [][]byte) {
		require.True(t, r.freeze())
		for _, s := range r.frozen.write.Sums {
			keys = append(keys, key{s.Instance[0], s.Order.Sequence, s.Reports, s.RxBytes})
			data = append(data, slices.Clone(s.Data))
		}
		r.freeFrozen()
		return keys, data
	}
	add(1, 2, 5)
	add(1, 3, 0)
	add(1, 4, 0)
	require.Equal(t, []int64{3}, tracker.take())
	add(1, 4, 0)
	add(1, 1, 7) // again, as a batch has it
	add(2, 1, 9)
	require.Empty(t, tracker.take())
	keys, data := batch()
	require.Equal(t, []key{{1, 1, 1, 7}, {1, 2, 1, 5}, {1, 4, 2, 0}, {2, 1, 1, 9}}, keys)
	require.Equal(t, [][]byte{nil, nil, {2, 1}, {2, 1}}, data, "the database may have what came of the one before")

	for sequence := range int64(maxUnwritten + 2) {
		add(1, 10+sequence, 1)
	}
	require.Equal(t, []int64{10, 11}, tracker.take())
	require.Equal(t, 2.0, testutil.ToFloat64(r.metrics.dropped.WithLabelValues(droppedAgent)))
	add(1, 5, 1)
	require.Equal(t, []int64{5}, tracker.take())
	keys, _ = batch()
	require.Len(t, keys, maxUnwritten)
	require.Equal(t, key{1, 12, 1, 1}, keys[0])
	require.Zero(t, r.pendingBytes)
}

// What the database has is bounded in bytes, too.
func TestSumBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := startReplica(t, memstore.New(), Options{MaxSumBytes: 1000}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		r.report(9, 1, 1)
		<-w.messages // it is not acked: nothing more is delivered
		for n := range byte(2) {
			r.Add(&agent.ReportSum{Agent: agent.ID{n}, Reports: 1, Data: make([]byte, 500)})
		}
		time.Sleep(2 * countInterval)
		require.Equal(t, 1000.0, testutil.ToFloat64(r.metrics.sumBytes))
		r.report(20, 1, 1)
		time.Sleep(2 * countInterval)
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.dropped.WithLabelValues(droppedFull)))
	})
}

// A batch is bounded in bytes, both that which is written and that which is sent.
func TestBatchBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := startReplica(t, memstore.New(), Options{}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		const agents, size = 300, 16 << 10
		for n := range agents {
			r.Add(&agent.ReportSum{Agent: agent.ID{byte(n >> 8), byte(n)}, Reports: 1, Data: make([]byte, size)})
		}
		told, batches := 0, 0
		began := time.Now()
		for told < agents {
			m := <-w.messages
			require.LessOrEqual(t, len(m.Sums)*size, batchBytes)
			told += len(m.Sums)
			batches++
			w.acks <- m.Position.Number
		}
		require.Equal(t, agents, told)
		require.GreaterOrEqual(t, testutil.ToFloat64(r.metrics.writes), float64(agents*size/batchBytes))
		require.LessOrEqual(t, time.Since(began), 3*batchInterval, "a full batch is followed by the next at once")
	})
}

// A batch is read when there is room for it, which it has until it is sent. While there
// is none the subscription is kept.
func TestRoomOfBatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := startReplica(t, memstore.New(), Options{}, memstore.Options{})
		var free, kept atomic.Int64
		free.Store(1)
		room := func(context.Context) (func(int), error) {
			if free.Add(-1) < 0 {
				free.Add(1)
				return nil, agent.ErrNoRoom
			}
			var once sync.Once
			return func(bytes int) {
				kept.Store(int64(bytes))
				if bytes == 0 {
					once.Do(func() { free.Add(1) })
				}
			}, nil
		}
		w := r.watch(t, agent.ReportWatch{Name: "a", Room: room})
		<-w.messages
		synctest.Wait()
		require.EqualValues(t, 1, free.Load())

		free.Store(0)
		r.Add(&agent.ReportSum{Agent: agent.ID{1}, Reports: 1, Data: make([]byte, 1000)})
		other := r.watch(t, agent.ReportWatch{Name: "a", StandBy: true})
		time.Sleep(10 * time.Minute)
		require.Empty(t, w.messages)
		require.Empty(t, other.ended, "the lease is renewed")
		free.Store(1)
		m := <-w.messages
		require.Len(t, m.Sums, 1)
		synctest.Wait()
		require.Zero(t, kept.Load())
		require.EqualValues(t, 1, free.Load(), "it is sent")
		w.cancel()
		require.ErrorIs(t, <-w.ended, context.Canceled)

		// What a watcher does not read it keeps.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error)
		go func() {
			ended <- r.Serve(ctx, agent.ReportWatch{Name: "a", Room: room}, nil, func(m agent.ReportMessage) error {
				if len(m.Sums) > 0 { // the same again: it was not acked
					<-ctx.Done()
				}
				return ctx.Err()
			})
		}()
		synctest.Wait()
		require.EqualValues(t, 1000+sumBytes, kept.Load())
		require.Zero(t, free.Load())
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.EqualValues(t, 1, free.Load())
	})
}

// A subscription that nobody watches goes, and a watcher that comes later begins anew.
func TestExpiry(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		r := startReplica(t, database, Options{Retention: time.Hour}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		first := <-w.messages
		time.Sleep(2 * time.Hour)
		r.report(1, 1, 1)
		<-w.messages
		close(w.acks)
		require.NoError(t, <-w.ended)
		r.report(1, 2, 2)
		time.Sleep(59 * time.Minute)
		require.True(t, r.Wanted())
		time.Sleep(3 * time.Minute)
		require.False(t, r.Wanted())
		require.Empty(t, database.ReportSums())
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.expired))
		w = r.watch(t, agent.ReportWatch{Name: "a", Position: agent.Position{Incarnation: first.Position.Incarnation, Number: 1}})
		require.NotEqual(t, first.Position.Incarnation, (<-w.messages).Position.Incarnation)
	})
}

// A stream that was cut off keeps one that stands by waiting for its lease, and one
// that asks for the name not at all.
func TestStandBy(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		one := startReplica(t, database, Options{Shared: true}, memstore.Options{})
		two := startReplica(t, database, Options{Shared: true}, memstore.Options{})
		store := one.store.(*memstore.Store)
		w := one.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		standBy := two.watch(t, agent.ReportWatch{Name: "a", StandBy: true})
		time.Sleep(time.Hour)
		require.Empty(t, standBy.messages)
		store.Kill()
		w.cancel()
		began := time.Now()
		require.ErrorIs(t, <-standBy.ended, agent.ErrNameFree)
		require.LessOrEqual(t, time.Since(began), 20*time.Second)
		require.Error(t, <-w.ended)
		w = two.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		newer := two.watch(t, agent.ReportWatch{Name: "a"})
		<-newer.messages
		require.ErrorIs(t, <-w.ended, agent.ErrSuperseded)
	})
}

// A replica without others is heard of, too: else its row, which counts its writes,
// would be removed after a month.
func TestWriterIsRemembered(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var beats atomic.Int64
		startReplica(t, memstore.New(), Options{}, memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
			if doing == "record heartbeat of a report writer" {
				beats.Add(1)
			}
			return memstore.Fault{}
		}})
		time.Sleep(3 * time.Hour)
		require.GreaterOrEqual(t, beats.Load(), int64(3))
	})
}

// A row that the database refuses costs no other.
func TestRejectedRow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := startReplica(t, memstore.New(), Options{}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		for n := range byte(9) {
			if n%4 == 1 {
				r.Add(&agent.ReportSum{Agent: agent.ID{n}, Reports: 2, ReceivedAt: time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)})
			} else {
				r.report(n, 1, 1)
			}
		}
		got := map[byte]int64{}
		for m := range drain(w) {
			for _, s := range m.Sums {
				got[s.Agent[0]] += s.RxBytes
			}
		}
		require.Equal(t, map[byte]int64{0: 1, 2: 1, 3: 1, 4: 1, 6: 1, 7: 1, 8: 1}, got)
		require.Equal(t, 4.0, testutil.ToFloat64(r.metrics.dropped.WithLabelValues(droppedRejected)))
		require.Zero(t, testutil.ToFloat64(r.metrics.lost))
		require.Equal(t, 7.0, testutil.ToFloat64(r.metrics.written))
		r.mu.Lock()
		defer r.mu.Unlock()
		require.Zero(t, r.unwrittenLocked())
	})
}

// A watcher that stands by costs the database no more if it sends acks meanwhile.
func TestAcksWhileStandingBy(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var openings atomic.Int64
		r := startReplica(t, memstore.New(), Options{}, memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
			if doing == "open subscription" {
				openings.Add(1)
			}
			return memstore.Fault{}
		}})
		owner := r.watch(t, agent.ReportWatch{Name: "a"})
		<-owner.messages
		standBy := r.watch(t, agent.ReportWatch{Name: "a", StandBy: true})
		for range 100 {
			standBy.acks <- 0
		}
		synctest.Wait()
		require.Equal(t, int64(2), openings.Load())
		standBy.acks <- 1
		var ack *agent.AckError
		require.ErrorAs(t, <-standBy.ended, &ack)
	})
}

// A replica that does not confirm delays a subscription, but not for ever.
func TestUnconfirmed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		require.NoError(t, database.Open(memstore.Options{}).RecordReportWriterHeartbeat(t.Context(), agent.ID{99}))
		r := startReplica(t, database, Options{Shared: true}, memstore.Options{})
		began := time.Now()
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		require.GreaterOrEqual(t, time.Since(began), confirmTimeout)
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.unconfirmed))
	})
}

// A start without a replica is counted once, also if its answer was lost with the stream.
func TestUnconfirmedAnswerIsLost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		require.NoError(t, database.Open(memstore.Options{}).RecordReportWriterHeartbeat(t.Context(), agent.ID{99}))
		began := time.Now()
		r := startReplica(t, database, Options{Shared: true}, memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
			if since := time.Since(began); doing == "start subscription" && since >= confirmTimeout && since < 2*confirmTimeout {
				return memstore.Fault{Lost: true}
			}
			return memstore.Fault{}
		}})
		lost := r.watch(t, agent.ReportWatch{Name: "a"})
		time.Sleep(confirmTimeout + 3*time.Second)
		lost.cancel()
		require.Error(t, <-lost.ended)
		require.Empty(t, lost.messages)
		time.Sleep(confirmTimeout)
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		first := <-w.messages
		require.Less(t, first.Since, began.Add(2*confirmTimeout), "the lost start counts")
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.unconfirmed))
	})
}

// What a subscription has no room for is counted once, also if the answer was lost; it
// does not count as written.
func TestRefusedAnswerIsLost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var lost atomic.Bool
		r := startReplica(t, memstore.New(), Options{MaxSums: 1}, memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
			return memstore.Fault{Lost: doing == "add reports" && lost.CompareAndSwap(true, false)}
		}})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		r.report(1, 1, 1)
		<-w.messages // it is not acked: nothing more is delivered
		r.report(2, 1, 1)
		time.Sleep(2 * countInterval)
		lost.Store(true)
		r.report(3, 1, 1)
		r.report(3, 2, 1)
		time.Sleep(2 * countInterval)
		require.False(t, lost.Load())
		require.Equal(t, 2.0, testutil.ToFloat64(r.metrics.dropped.WithLabelValues(droppedFull)))
		require.Equal(t, 2.0, testutil.ToFloat64(r.metrics.written))
		require.Equal(t, 3.0, testutil.ToFloat64(r.metrics.writes))
	})
}

// A database that was put back gives a number to another batch, for a stream of before.
// The watcher that has processed the lost batch is told of the other one.
func TestNumberGivenTwice(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := memstore.New()
		var cut atomic.Bool
		one := startReplica(t, database, Options{Shared: true}, memstore.Options{Fault: func(string, bool) memstore.Fault {
			if cut.Load() {
				return memstore.Fault{Err: memstore.ErrRefused}
			}
			return memstore.Fault{}
		}})
		two := startReplica(t, database, Options{Shared: true}, memstore.Options{})
		of1 := one.watch(t, agent.ReportWatch{Name: "a"})
		first := <-of1.messages
		restore := database.Backup()
		cut.Store(true) // it does not learn of the newer stream
		of2 := two.watch(t, agent.ReportWatch{Name: "a", Position: first.Position})
		<-of2.messages
		two.report(1, 1, 1)
		lost := <-of2.messages
		of2.cancel()
		require.Error(t, <-of2.ended)
		restore()
		cut.Store(false)
		one.report(1, 2, 2)
		other := <-of1.messages
		require.Equal(t, lost.Position.Number, other.Position.Number)
		require.Equal(t, lost.Position.Incarnation, other.Position.Incarnation)
		require.NotEqual(t, lost.Position, other.Position)
		of1.cancel() // coderd has stored another position than this one follows
		require.Error(t, <-of1.ended)
		of2 = two.watch(t, agent.ReportWatch{Name: "a", Position: lost.Position})
		first = <-of2.messages
		require.NotEqual(t, lost.Position.Incarnation, first.Position.Incarnation)
		again := <-of2.messages
		require.Equal(t, other.Sums, again.Sums)
		require.Equal(t, other.Position.Nonce, again.Position.Nonce)
		require.Equal(t, 1.0, testutil.ToFloat64(two.metrics.restored))
	})
}

// A report of a pending agent is added without an allocation. That of another agent
// takes what the map and the list of a batch take.
func TestAddAllocations(t *testing.T) {
	r, err := New(nil, Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	sum := agent.ReportSum{Reports: 1, Data: make([]byte, 60)}
	require.Zero(t, testing.AllocsPerRun(100, func() { r.Add(&sum) }), "nobody watches")
	r.setSubscriptions([]agent.Subscription{{ID: 1}})
	r.Add(&sum)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		sum.Order.Sequence++
		r.Add(&sum)
	}), "it waits already")
	batch := func() {
		for n := range batchSize {
			sum.Agent[0], sum.Agent[1] = byte(n), byte(n>>8)
			r.Add(&sum)
		}
		for r.freeze() {
			r.freeFrozen()
		}
	}
	batch()
	require.LessOrEqual(t, testing.AllocsPerRun(20, batch), batchSize/10.0, "sums are used again")
}

// What a replica has gathered is written before it stops; if the database is down, it
// is counted.
func TestStop(t *testing.T) {
	for name, down := range map[string]bool{"up": false, "down": true} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				database := memstore.New()
				r := startReplica(t, database, Options{}, memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
					if down && doing == "add reports" {
						return memstore.Fault{Hang: true}
					}
					return memstore.Fault{}
				}})
				w := r.watch(t, agent.ReportWatch{Name: "a"})
				<-w.messages
				r.report(1, 1, 1)
				r.report(1, 2, 1)
				began := time.Now()
				r.stop()
				require.LessOrEqual(t, time.Since(began), stopTimeout+callTimeout)
				if down {
					require.Equal(t, 2.0, testutil.ToFloat64(r.metrics.dropped.WithLabelValues(droppedShutdown)))
					return
				}
				require.Len(t, database.ReportSums(), 1)
			})
		})
	}
}

// The errors that end a stream.
func TestStreamErrors(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := startReplica(t, memstore.New(), Options{MaxSubscriptions: 1}, memstore.Options{})
		w := r.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		require.ErrorIs(t, <-r.watch(t, agent.ReportWatch{Name: "b"}).ended, agent.ErrTooMany)
		w.acks <- 1
		var ack *agent.AckError
		require.ErrorAs(t, <-w.ended, &ack)
		require.EqualError(t, ack, "want 0 to 0, got 1")
		broken := errors.New("the stream broke")
		require.ErrorIs(t, r.Serve(t.Context(), agent.ReportWatch{Name: "a"}, nil, func(agent.ReportMessage) error { return broken }), broken)
		w = r.watch(t, agent.ReportWatch{Name: "a", StandBy: true})
		<-w.messages
		w.cancel()
		require.ErrorIs(t, <-w.ended, context.Canceled)
		ended := r.watch(t, agent.ReportWatch{Name: "a"})
		close(ended.acks) // before anything
		require.NoError(t, <-ended.ended)
	})
}

func TestOptions(t *testing.T) {
	for want, opts := range map[string]Options{
		"reports options: max subscriptions: want at least 1, got -1": {MaxSubscriptions: -1},
		"reports options: max pending: want at least 1, got -1":       {MaxPending: -1},
		"reports options: max pending bytes: want at least 1, got -1": {MaxPendingBytes: -1},
		"reports options: max sums: want at least 1, got -1":          {MaxSums: -1},
		"reports options: max sum bytes: want at least 1, got -1":     {MaxSumBytes: -1},
		"reports options: retention: want at least 1m, got 1s":        {Retention: time.Second},
		"reports options: lease: want at least 1s, got 1ms":           {Lease: time.Millisecond},
	} {
		_, err := New(nil, opts, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
		require.EqualError(t, err, want)
	}
	problems, err := testutil.GatherAndLint(func() prometheus.Gatherer {
		reg := prometheus.NewRegistry()
		_, err := New(nil, Options{}, reg, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		return reg
	}())
	require.NoError(t, err)
	require.Empty(t, problems)
}

// BenchmarkAdd is the cost of a report: without a subscription, and with one.
func BenchmarkAdd(b *testing.B) {
	for name, watched := range map[string]bool{"nobody": false, "subscription": true} {
		b.Run(name, func(b *testing.B) {
			r, err := New(nil, Options{MaxPending: 1 << 30}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			require.NoError(b, err)
			if watched {
				r.setSubscriptions([]agent.Subscription{{ID: 1}})
			}
			sum := agent.ReportSum{Reports: 1, RxBytes: 1, Data: make([]byte, 60)}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if !r.Wanted() {
					continue
				}
				sum.Agent[0], sum.Agent[1] = byte(n), byte(n>>8)
				if n++; n%batchSize == 0 {
					r.freeze()
					r.freeFrozen()
				}
				r.Add(&sum)
			}
		})
	}
}
