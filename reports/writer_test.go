package reports

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/memstore"
)

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
		delivered, batches := 0, 0
		began := time.Now()
		for delivered < agents {
			m := <-w.messages
			require.LessOrEqual(t, len(m.Sums)*size, batchBytes)
			delivered += len(m.Sums)
			batches++
			w.acks <- m.Position.Number
		}
		require.Equal(t, agents, delivered)
		require.GreaterOrEqual(t, testutil.ToFloat64(r.metrics.writes), float64(agents*size/batchBytes))
		require.LessOrEqual(t, time.Since(began), 3*batchInterval, "a full batch is followed by the next at once")
	})
}

// A replica without others is heard of, too: else its row, which counts its writes,
// would be removed after a month.
func TestWriterIsRemembered(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var heartbeats atomic.Int64
		startReplica(t, memstore.New(), Options{}, memstore.Options{Fault: func(doing string, _ bool) memstore.Fault {
			if doing == "record heartbeat of a report writer" {
				heartbeats.Add(1)
			}
			return memstore.Fault{}
		}})
		time.Sleep(3 * time.Hour)
		require.GreaterOrEqual(t, heartbeats.Load(), int64(3))
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
