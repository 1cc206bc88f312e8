package reports

import (
	"context"
	"errors"
	"sync"
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

// A database that was put back gives a number to another batch, for a stream of before.
// The watcher that has processed the lost batch gets the other one.
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
