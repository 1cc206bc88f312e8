package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/agent"
)

func reportOpening(name string, stream byte) agent.SubscriptionOpening {
	return agent.SubscriptionOpening{Name: name, Stream: id(stream), Lease: time.Hour, Max: 16, Incarnation: 7}
}

// An attempt whose outcome is not known is waited for: it counts, or it does not.
func TestPostgresReportsInDoubt(t *testing.T) {
	url := migratedDatabase(t)
	s := openURL(t, Options{URL: url})
	a, err := s.OpenSubscription(t.Context(), reportOpening("a", 1))
	require.NoError(t, err)
	require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(50)))
	before := admin(t, url)
	w := agent.ReportWrite{
		Writer: id(50), Sequence: 1, To: []agent.ReportTarget{{Subscription: a.ID}},
		Sums: []agent.ReportSum{{Agent: id(1), Reports: 1, RxBytes: 1}},
	}
	for _, end := range []struct {
		text string
		want agent.ReportWritten
	}{
		{"ROLLBACK", agent.ReportWritten{}},
		{"COMMIT", agent.ReportWritten{Repeated: true}},
	} {
		execute(t, before, "BEGIN")
		execute(t, before, "UPDATE report_writers SET sequence = $1 WHERE sequence = $2", w.Sequence, w.Sequence-1)
		type result struct {
			written agent.ReportWritten
			err     error
		}
		done := make(chan result)
		go func() {
			written, err := s.AddReports(t.Context(), w)
			done <- result{written, err}
		}()
		watch := admin(t, url)
		require.Eventually(t, func() bool {
			return scalar[int](t, watch, "SELECT count(*) FROM pg_locks WHERE NOT granted") > 0
		}, time.Minute, 10*time.Millisecond, "it waits")
		execute(t, before, end.text)
		r := <-done
		require.NoError(t, r.err)
		require.Equal(t, end.want, r.written)
		w.Sequence++
	}
	batch, err := s.DeliverReports(t.Context(), agent.Delivery{
		Subscription: a.ID, Incarnation: a.Incarnation, Stream: id(1), Limit: 10, Lease: time.Hour,
	})
	require.NoError(t, err)
	require.Equal(t, int64(1), batch.Sums[0].RxBytes)
}

// Replicas write the same reports, of several processes, while they are delivered and a
// subscription expires. They do not deadlock, and each report is added once.
func TestPostgresReportsMeet(t *testing.T) {
	stores := openEach(t, 4, Options{URL: migratedDatabase(t)})
	const writes, agents = 30, 20
	a, err := stores[0].OpenSubscription(t.Context(), reportOpening("a", 1))
	require.NoError(t, err)
	expires := reportOpening("b", 2)
	expires.Lease = -2 * time.Hour
	b, err := stores[0].OpenSubscription(t.Context(), expires)
	require.NoError(t, err)

	writing, ctx := errgroup.WithContext(t.Context())
	for n, s := range stores[:3] {
		require.NoError(t, s.RecordReportWriterHeartbeat(t.Context(), id(byte(50+n))))
		writing.Go(func() error {
			for sequence := range int64(writes) {
				w := agent.ReportWrite{Writer: id(byte(50 + n)), Sequence: sequence + 1, To: []agent.ReportTarget{{Subscription: b.ID}, {Subscription: a.ID}}}
				for i := range byte(agents) {
					// The order in which they came differs.
					of := (i*[]byte{3, 7, 9}[n] + byte(sequence)) % agents
					for report := 2 * sequence; report < 2*sequence+2; report++ {
						w.Sums = append(w.Sums, agent.ReportSum{
							Agent: id(of), Instance: agent.Instance{of, byte(sequence / 7)}, Order: agent.Order{Epoch: int64(n), Sequence: report + 1},
							Reports: 1, RxBytes: 1 << report, ReceivedAt: time.Now(),
						})
					}
				}
				if _, err := s.AddReports(ctx, w); err != nil {
					return err
				}
				if n == 0 && sequence == writes/2 {
					if _, err := s.ExpireSubscriptions(ctx, time.Hour); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	written := make(chan error, 1)
	go func() { written <- writing.Wait() }()
	d := agent.Delivery{Subscription: a.ID, Incarnation: a.Incarnation, Stream: id(1), Limit: 7, Lease: time.Hour}
	got, reports := make(map[agent.ID]int64), int64(0)
	for ended := false; ; {
		select {
		case err := <-written:
			require.NoError(t, err)
			ended = true
		default:
		}
		batch, err := stores[3].DeliverReports(context.WithoutCancel(t.Context()), d)
		require.NoError(t, err)
		if batch == nil {
			if ended {
				break
			}
			continue
		}
		d.Number, d.Acked = batch.Number, batch.Number
		for _, sum := range batch.Sums {
			require.Zero(t, got[sum.Agent]&sum.RxBytes)
			got[sum.Agent] |= sum.RxBytes
			reports += sum.Reports
		}
	}
	require.Equal(t, int64(2*writes*agents), reports)
	for of := range byte(agents) {
		require.Equal(t, int64(1)<<(2*writes)-1, got[id(of)])
	}
	counts, err := stores[3].CountReportSums(t.Context())
	require.NoError(t, err)
	require.Empty(t, counts, "nothing is left of the one that expired")
}

// Streams that begin at once make no more subscriptions than there may be.
func TestPostgresSubscriptionsBound(t *testing.T) {
	stores := openEach(t, 8, Options{URL: migratedDatabase(t)})
	const limit = 3
	for round := range 5 {
		var opening errgroup.Group
		var made atomic.Int64
		for n, s := range stores {
			opening.Go(func() error {
				o := reportOpening(fmt.Sprint(round, " ", n), byte(n+1))
				o.Max, o.Lease = limit, -time.Hour
				_, err := s.OpenSubscription(t.Context(), o)
				if errors.Is(err, agent.ErrTooMany) {
					return nil
				}
				made.Add(1)
				return err
			})
		}
		require.NoError(t, opening.Wait())
		require.Equal(t, int64(limit), made.Load())
		_, err := stores[0].ExpireSubscriptions(t.Context(), time.Minute)
		require.NoError(t, err)
	}
}
