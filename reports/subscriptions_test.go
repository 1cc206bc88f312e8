package reports

import (
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/memstore"
)

// Reports from before a subscription are not delivered to it.
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
