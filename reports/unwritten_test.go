package reports

import (
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

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/memstore"
)

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
		require.Equal(t, []int64{21}, tracker.takeWritten())
		add(2, 12, 1)
		require.Zero(t, dropped()-1, "it waits already, and has room")
		add(2, 13, sumBytes+reportBytes)
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.reduced), "it would become too large")
		add(3, 22, 0)
		require.Equal(t, 2.0, dropped())
		require.Equal(t, []int64{22}, tracker.takeWritten())
		add(2, 14, 0)
		add(2, 15, 0)
		require.Empty(t, tracker.takeWritten())
		add(2, 16, 0)
		require.Equal(t, []int64{15}, tracker.takeWritten(), "without room it is written with the one that came before, which need not be kept")
		add(2, 12, 0)
		add(1, 2, 0)
		require.Equal(t, []int64{1}, tracker.takeWritten())
		add(3, 23, 1000)
		require.Equal(t, 2.0, dropped(), "there is room again")
		m := <-w.messages
		require.Len(t, m.Sums, 3)
		require.Equal(t, []int64{2, 6, 1}, []int64{m.Sums[0].Reports, m.Sums[1].Reports, m.Sums[2].Reports})
		require.Empty(t, m.Sums[1].Data)
		synctest.Wait() // the trackers are notified beside the delivery
		require.ElementsMatch(t, []int64{2, 11, 12, 13, 14, 16, 23}, tracker.takeWritten())
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

func (t *tracker) takeWritten() []int64 {
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
		require.Equal(t, []int64{1}, trackers[one].takeWritten(), "nobody wants it")
		w := one.watch(t, agent.ReportWatch{Name: "a"})
		<-w.messages
		down.Store(true)
		add(one, 1, 2, 2)
		add(one, 1, 3, 4)
		add(one, 2, 1, 1)
		add(one, 3, 7, 1)
		require.Equal(t, []int64{7}, trackers[one].takeWritten(), "it is beyond the limit")
		time.Sleep(10 * time.Second)
		require.Empty(t, trackers[one].takeWritten(), "the database does not have them")
		// The stream is cut, and its agent sends them again.
		for sequence := int64(2); sequence < 5; sequence++ {
			add(two, 1, sequence, 1<<(sequence-1))
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, []int64{2, 3, 4}, trackers[two].takeWritten())
		add(one, 1, 3, 4) // beside a batch that has it
		down.Store(false)
		time.Sleep(20 * time.Second)
		require.ElementsMatch(t, []int64{2, 3, 3, 1}, trackers[one].takeWritten())
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
		require.Equal(t, []int64{9}, trackers[one].takeWritten(), "the database refuses it")
		down.Store(true)
		add(one, 1, 10, 1)
		one.stop()
		require.Empty(t, trackers[one].takeWritten(), "it is to be sent elsewhere")
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
	require.Equal(t, []int64{3}, tracker.takeWritten())
	add(1, 4, 0)
	add(1, 1, 7) // again, as a batch has it
	add(2, 1, 9)
	require.Empty(t, tracker.takeWritten())
	keys, data := batch()
	require.Equal(t, []key{{1, 1, 1, 7}, {1, 2, 1, 5}, {1, 4, 2, 0}, {2, 1, 1, 9}}, keys)
	require.Equal(t, [][]byte{nil, nil, {2, 1}, {2, 1}}, data, "the database may have what came of the one before")

	for sequence := range int64(maxUnwritten + 2) {
		add(1, 10+sequence, 1)
	}
	require.Equal(t, []int64{10, 11}, tracker.takeWritten())
	require.Equal(t, 2.0, testutil.ToFloat64(r.metrics.dropped.WithLabelValues(droppedAgent)))
	add(1, 5, 1)
	require.Equal(t, []int64{5}, tracker.takeWritten())
	keys, _ = batch()
	require.Len(t, keys, maxUnwritten)
	require.Equal(t, key{1, 12, 1, 1}, keys[0])
	require.Zero(t, r.pendingBytes)
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
