package coderdapi_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/contract"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// report has agent n report.
func report(s *edgetest.Service, n int, report *pb.Stats) {
	s.T.Helper()
	s.Request(n, edgetest.Stats(report))
}

// statsWatcher is one stream of a watch of stats.
type statsWatcher struct {
	pb.CoderdService_WatchStatsClient
	t   testing.TB
	cut func()
}

// watchStats begins a stream, which cut breaks.
func watchStats(s *edgetest.Service, first *pb.WatchStatsRequest) *statsWatcher {
	s.T.Helper()
	ctx, cancel := context.WithCancel(s.AsCoderd())
	w, err := s.Coderd().WatchStats(ctx)
	require.NoError(s.T, err)
	if err := w.Send(first); !errors.Is(err, io.EOF) { // a refused stream may have ended
		require.NoError(s.T, err)
	}
	return &statsWatcher{w, s.T, func() {
		cancel()
		synctest.Wait()
	}}
}

func (w *statsWatcher) next() *pb.WatchStatsResponse {
	w.t.Helper()
	m, err := w.Recv()
	require.NoError(w.t, err)
	return m
}

// began receives the first response of a stream, which has the number.
func (w *statsWatcher) began(number int64) *pb.WatchStatsResponse {
	w.t.Helper()
	m := w.next()
	require.Empty(w.t, m.GetAgents())
	require.Equal(w.t, number, m.GetNumber())
	require.NotZero(w.t, m.GetIncarnation())
	return m
}

// batch has the number and what its only agent received.
type batch struct{ number, bytes int64 }

// requireBatch receives the next response, which is the batch.
func (w *statsWatcher) requireBatch(want batch) *pb.WatchStatsResponse {
	w.t.Helper()
	m := w.next()
	require.Equal(w.t, want.number, m.GetNumber())
	require.Len(w.t, m.GetAgents(), 1)
	require.Equal(w.t, want.bytes, m.GetAgents()[0].GetStats().GetRxBytes())
	return m
}

func (w *statsWatcher) ack(number int64) {
	w.t.Helper()
	require.NoError(w.t, w.Send(&pb.WatchStatsRequest{Number: number}))
}

func TestWatchStats(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1, 2)
		report(s, 1, &pb.Stats{RxBytes: 1000}) // nobody watches
		began := time.Now()
		w := watchStats(s, &pb.WatchStatsRequest{Name: "insights"})
		first := w.began(0)
		require.WithinRange(t, first.GetSince().AsTime(), began, time.Now())
		require.Equal(t, 1.0, s.Counter("agentstatsd_watches", "stats"))
		require.Equal(t, 1.0, s.Counter("agentstatsd_report_subscriptions", ""))

		requireNext := func(number int64, want ...*pb.AgentStats) {
			t.Helper()
			got := w.next()
			require.Equal(t, number, got.GetNumber())
			require.Equal(t, first.GetIncarnation(), got.GetIncarnation())
			require.Empty(t, cmp.Diff(want, got.GetAgents(), protocmp.Transform()))
			w.ack(number)
		}
		// entry is of an agent that reported once, and is not used.
		entry := func(n int, stats *pb.Stats) *pb.AgentStats {
			return &pb.AgentStats{
				AgentId: edgetest.IDBytes(n), WorkspaceId: edgetest.IDBytes(10_000 + n), OwnerId: edgetest.IDBytes(20_000), TemplateId: edgetest.IDBytes(30_000),
				Reports: 1, Stats: stats, ReceivedAt: timestamppb.Now(),
			}
		}
		full := &pb.Stats{
			ConnectionsByProto: map[string]int64{"TCP": 3}, ConnectionCount: 3, ConnectionMedianLatencyMs: 1.5,
			RxPackets: 1, RxBytes: 2, TxPackets: 3, TxBytes: 4,
			SessionCountVscode: 5, SessionCountJetbrains: 6, SessionCountReconnectingPty: 7, SessionCountSsh: 8,
			SessionCounts: map[string]int64{"cursor": 2, "new": 1},
			Metrics:       edgetest.Gauge("g", 1).GetMetrics(),
		}
		c := s.Connect(edgetest.Session{Agent: 1})
		c.SendNext(edgetest.Stats(full))
		want := entry(1, full)
		want.LastUsedAt = want.GetReceivedAt()
		full.Metrics = nil
		requireNext(1, want)

		// Reports that come together are made one. A session that has ended shows.
		report(s, 2, &pb.Stats{RxBytes: 10, RxPackets: agent.MaxReportedBytes, TxBytes: -4, ConnectionCount: 9, SessionCounts: map[string]int64{"old": 1}})
		used := timestamppb.Now()
		time.Sleep(time.Millisecond)
		report(s, 2, &pb.Stats{RxBytes: 20, RxPackets: 5, TxBytes: 7, TxPackets: 3})
		c.SendNext(edgetest.Stats(&pb.Stats{RxBytes: 1}))
		synctest.Wait()
		both := entry(2, &pb.Stats{RxBytes: 30, RxPackets: agent.MaxReportedBytes + 5, TxBytes: 7, TxPackets: 3})
		both.Reports, both.LastUsedAt = 2, used
		requireNext(2, entry(1, &pb.Stats{RxBytes: 1}), both)

		// What a removed agent last counted is delivered.
		c.SendNext(edgetest.Stats(&pb.Stats{RxBytes: 9}))
		synctest.Wait()
		last := entry(1, &pb.Stats{RxBytes: 9})
		_, err := s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: edgetest.IDsBytes(1)})
		require.NoError(t, err)
		requireNext(3, last)
	})
}

// The ids of owner and template are those of the registration when the report came.
// An agent cannot send its own.
func TestWatchStatsHasTheIDsOfARegistration(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		partial := edgetest.Registration(1)
		partial.Workspace.OwnerId, partial.Workspace.Template.Id = nil, nil
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{partial}})
		require.NoError(t, err)
		w := watchStats(s, &pb.WatchStatsRequest{Name: "insights"})
		w.began(0)
		forged := &pb.Stats{RxBytes: 1}
		forged.ProtoReflect().SetUnknown(contract.AppendIDs(nil, &agent.Workspace{OwnerID: edgetest.ID(7), Template: agent.Template{ID: edgetest.ID(8)}}))
		report(s, 1, forged)
		entry := w.next().GetAgents()[0]
		require.Nil(t, entry.GetOwnerId())
		require.Nil(t, entry.GetTemplateId())
		w.ack(1)

		s.Register(1)
		report(s, 1, forged)
		entry = w.next().GetAgents()[0]
		require.Equal(t, edgetest.IDBytes(20_000), entry.GetOwnerId())
		require.Equal(t, edgetest.IDBytes(30_000), entry.GetTemplateId())
	})
}

func TestWatchStatsContinues(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		w := watchStats(s, &pb.WatchStatsRequest{Name: "insights"})
		incarnation := w.began(0).GetIncarnation()
		// from continues the watch.
		from := func(position *pb.WatchStatsRequest) *pb.WatchStatsRequest {
			position.Name = "insights"
			return position
		}
		report(s, 1, &pb.Stats{RxBytes: 1})
		first := w.requireBatch(batch{number: 1, bytes: 1})
		report(s, 1, &pb.Stats{RxBytes: 2})
		time.Sleep(time.Minute) // nothing more comes before the ack
		w.cut()
		require.Equal(t, 0.0, s.Counter("agentstatsd_watches", "stats"))
		report(s, 1, &pb.Stats{RxBytes: 4})
		time.Sleep(2 * time.Second) // it is written

		// It was not processed: it comes again, unchanged.
		w = watchStats(s, from(&pb.WatchStatsRequest{}))
		w.began(0)
		require.Empty(t, cmp.Diff(first, w.next(), protocmp.Transform()))
		w.ack(1)
		second := w.requireBatch(batch{number: 2, bytes: 6})
		w.cut()
		// A number of another incarnation says nothing without the batch's nonce.
		w = watchStats(s, from(&pb.WatchStatsRequest{Incarnation: incarnation + 1, Number: 2, Nonce: second.GetNonce() + 1}))
		w.began(1)
		w.requireBatch(batch{number: 2, bytes: 6})
		w.cut()
		// It was processed, but its ack was lost.
		w = watchStats(s, from(&pb.WatchStatsRequest{Incarnation: incarnation, Number: 2, Nonce: second.GetNonce()}))
		require.Equal(t, second.GetNonce(), w.began(2).GetNonce())
		report(s, 1, &pb.Stats{RxBytes: 8})
		w.requireBatch(batch{number: 3, bytes: 8})
		w.ack(2) // old acks say nothing
		w.ack(0)
		synctest.Wait()
		w.cut()
		w = watchStats(s, from(&pb.WatchStatsRequest{Incarnation: incarnation, Number: 1, Nonce: first.GetNonce()}))
		w.began(2)
		w.requireBatch(batch{number: 3, bytes: 8})
		w.ack(3)
		require.NoError(t, w.CloseSend())
		_, err := w.Recv()
		require.Equal(t, io.EOF, err, "the last ack is stored")

		// The watcher knows more than the database: that is an older one.
		w = watchStats(s, from(&pb.WatchStatsRequest{Incarnation: incarnation, Number: 7, Nonce: 1}))
		third := w.began(3)
		require.NotEqual(t, incarnation, third.GetIncarnation())
		require.Equal(t, 1.0, s.Counter("agentstatsd_report_subscriptions_restored_total", ""))
		report(s, 1, &pb.Stats{RxBytes: 16})
		w.requireBatch(batch{number: 4, bytes: 16})
		w.cut()

		// It has processed another batch with the number.
		w = watchStats(s, from(&pb.WatchStatsRequest{Incarnation: third.GetIncarnation(), Number: 4, Nonce: 1}))
		require.NotEqual(t, third.GetIncarnation(), w.began(3).GetIncarnation())
		w.requireBatch(batch{number: 4, bytes: 16})
		w.cut()
	})
}

func TestWatchStatsTakeover(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		old := watchStats(s, &pb.WatchStatsRequest{Name: "insights"})
		old.began(0)
		report(s, 1, &pb.Stats{RxBytes: 1})
		old.requireBatch(batch{number: 1, bytes: 1})
		w := watchStats(s, &pb.WatchStatsRequest{Name: "insights"})
		w.began(0)
		w.requireBatch(batch{number: 1, bytes: 1})
		_, err := old.Recv()
		edgetest.RequireCode(t, err, codes.Aborted, "superseded by a newer watch of the name")

		// It stands by until the newer one has gone.
		old = watchStats(s, &pb.WatchStatsRequest{Name: "insights", StandBy: true})
		time.Sleep(5 * time.Minute) // twenty times the lease
		synctest.Wait()
		began := time.Now()
		w.ack(1)
		require.NoError(t, w.CloseSend())
		_, err = w.Recv()
		require.Equal(t, io.EOF, err)
		_, err = old.Recv()
		edgetest.RequireCode(t, err, codes.Unavailable, "the watcher that had the name is gone; connect again")
		require.LessOrEqual(t, time.Since(began), 5*time.Second)
		w = watchStats(s, &pb.WatchStatsRequest{Name: "insights", StandBy: true})
		w.began(1)
		w.ack(2)
		_, err = w.Recv()
		edgetest.RequireCode(t, err, codes.InvalidArgument, "number: want 0 to 1, got 2")
	})
}

func TestWatchStatsLimits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Coderd: coderdapi.Options{MaxWatches: 4}}) // with 3 subscriptions
		for want, first := range map[string]*pb.WatchStatsRequest{
			"name: want 1 to 64 bytes, got 0":                 {},
			"name: want 1 to 64 bytes, got 65":                {Name: strings.Repeat("n", 65)},
			"name: want no NUL in it":                         {Name: "a\x00"},
			"number: want at least 0, got -1":                 {Name: "a", Number: -1},
			"request: want it as the first message, got none": nil,
		} {
			var w *statsWatcher
			if first == nil {
				c, err := s.Coderd().WatchStats(s.AsCoderd())
				require.NoError(t, err)
				require.NoError(t, c.CloseSend())
				w = &statsWatcher{c, t, nil}
			} else {
				w = watchStats(s, first)
			}
			_, err := w.Recv()
			edgetest.RequireCode(t, err, codes.InvalidArgument, want)
		}
		synctest.Wait()
		var streams []*statsWatcher
		for _, name := range []string{"a", "b", "c"} {
			w := watchStats(s, &pb.WatchStatsRequest{Name: name})
			w.began(0)
			streams = append(streams, w)
		}
		_, err := watchStats(s, &pb.WatchStatsRequest{Name: "d"}).Recv()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "open subscription: too many subscriptions: want at most 3 (--max-report-subscriptions)")
		require.Equal(t, 1.0, s.Counter("agentstatsd_report_subscriptions_refused_total", ""))
		synctest.Wait()
		waits := watchStats(s, &pb.WatchStatsRequest{Name: "a", StandBy: true})
		synctest.Wait()
		_, err = watchStats(s, &pb.WatchStatsRequest{Name: "a"}).Recv()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 4 watches at once (--max-watches)")

		began := time.Now()
		go s.Stop()
		for _, w := range append(streams, waits) {
			_, err = w.Recv()
			edgetest.RequireCode(t, err, codes.Unavailable, "the service is stopping; connect again elsewhere or later")
		}
		require.Zero(t, time.Since(began))
	})
}

// blockedReader has nothing, and says so when it is let.
type blockedReader struct{ release chan struct{} }

func (r *blockedReader) MetadataWithin(context.Context, []agent.ID, int) ([]agent.Metadata, []agent.ID, error) {
	<-r.release
	return nil, nil, nil
}

// takeReads has GetMetadata occupy all that may be read for watches at once.
func (r *blockedReader) takeReads(s *edgetest.Service) (giveBack func()) {
	r.release = make(chan struct{})
	ended := make(chan error)
	go func() {
		_, err := s.Coderd().GetMetadata(s.AsCoderd(), &pb.GetMetadataRequest{AgentIds: edgetest.IDsBytes(1, 2, 3, 4, 5, 6)})
		ended <- err
	}()
	synctest.Wait()
	return func() {
		close(r.release)
		require.NoError(s.T, <-ended)
	}
}

// Batches for watches of stats take room together with all that is read for watches.
// Without room they wait, and their streams still own the subscription.
func TestWatchStatsWaitsForRoom(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		reader := &blockedReader{}
		s := edgetest.Start(t, edgetest.Settings{
			Coderd:       coderdapi.Options{MaxWatchesBytes: 24 << 20}, // half for reads: one of GetMetadata
			ChangeCoderd: func(c *coderdapi.Components) { c.Reader = reader },
		})
		s.Register(1)
		giveBack := reader.takeReads(s)
		w := watchStats(s, &pb.WatchStatsRequest{Name: "a"})
		time.Sleep(10 * time.Second)
		require.NotZero(t, s.Counter("agentstatsd_coderd_memory_refused_total", "report_batches"))
		require.Zero(t, s.Counter("agentstatsd_report_subscriptions", ""), "it is not asked for")
		giveBack()
		w.began(0)
		synctest.Wait()
		require.Zero(t, callsMemory(s, "watches"))

		giveBack = reader.takeReads(s)
		report(s, 1, &pb.Stats{RxBytes: 1000})
		time.Sleep(time.Minute) // four times the lease
		other := watchStats(s, &pb.WatchStatsRequest{Name: "a", StandBy: true})
		time.Sleep(time.Minute)
		giveBack()
		w.requireBatch(batch{number: 1, bytes: 1000})
		w.ack(1)
		synctest.Wait()
		require.Zero(t, callsMemory(s, "watches"))
		other.cut()
	})
}
