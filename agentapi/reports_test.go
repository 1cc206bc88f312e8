package agentapi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// report has agent n report.
func (s *service) report(n int, report *pb.Stats) {
	s.t.Helper()
	s.request(n, stats(report))
}

func (s *service) watchActivity(interval *durationpb.Duration) pb.CoderdService_WatchActivityClient {
	s.t.Helper()
	w, err := s.coderd().WatchActivity(s.asCoderd(), &pb.WatchActivityRequest{Interval: interval})
	require.NoError(s.t, err)
	synctest.Wait()
	return w
}

// watchStats watches without a name.
func (s *service) watchStats(numbers ...int) *statsWatcher {
	s.t.Helper()
	return s.resumeStats(s.asCoderd(), &pb.WatchStatsRequest{AgentIds: bids(numbers...)})
}

func TestWatchActivity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1, 2, 3)
		// The second agent is in the first one's workspace.
		both := registration(4)
		both.Name, both.Workspace = "other", workspace(1)
		_, err := s.coderd().RegisterAgents(s.asCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{both}})
		require.NoError(t, err)

		w := s.watchActivity(nil)
		began := time.Now()
		require.Equal(t, 1.0, s.counter("agentstatsd_watches", "activity"))
		next := func(workspace int, usedAt, toldAt time.Duration) {
			t.Helper()
			m, err := w.Recv()
			require.NoError(t, err)
			require.Len(t, m.GetWorkspaces(), 1)
			require.Equal(t, bid(10_000+workspace), m.GetWorkspaces()[0].GetWorkspaceId())
			require.Equal(t, usedAt, m.GetWorkspaces()[0].GetLastUsedAt().AsTime().Sub(began))
			require.Equal(t, toldAt, time.Since(began))
		}
		s.report(2, &pb.Stats{RxBytes: 5, SessionCounts: map[string]int64{"ssh": 0}})
		s.report(1, &pb.Stats{ConnectionCount: 1})
		next(1, 0, 0)
		// The next entry of the workspace comes after the interval, and tells the
		// newest use.
		time.Sleep(10 * time.Second)
		s.report(1, &pb.Stats{SessionCountSsh: 1})
		time.Sleep(5 * time.Second)
		s.report(4, &pb.Stats{SessionCounts: map[string]int64{"an app of the future": 1}})
		next(1, 15*time.Second, 30*time.Second)
		// Others do not wait for it.
		time.Sleep(time.Second)
		s.connect(3, 1, 1).send(stats(&pb.Stats{SessionCountVscode: 1}))
		next(3, 31*time.Second, 31*time.Second)
		time.Sleep(time.Hour)
		for i, use := range []*pb.Stats{{SessionCountJetbrains: 1}, {SessionCountReconnectingPty: 1}} {
			s.report(2, use)
			at := time.Hour + 31*time.Second + time.Duration(i)*30*time.Second
			next(2, at, at)
			time.Sleep(30 * time.Second)
		}

		// A shorter interval.
		quick := s.watchActivity(durationpb.New(time.Second))
		for range 5 {
			s.report(1, &pb.Stats{ConnectionCount: 1})
			_, err := quick.Recv()
			require.NoError(t, err)
			time.Sleep(time.Second)
		}
		for _, bad := range []time.Duration{0, -1, 999 * time.Millisecond, time.Hour + 1} {
			_, err := s.watchActivity(durationpb.New(bad)).Recv()
			requireCode(t, err, codes.InvalidArgument, fmt.Sprintf("interval: want 1s to 1h0m0s, got %v", bad))
		}
	})
}

// TestWatchActivityOfMany shows that entries come in parts, and that a watcher
// who does not read costs one entry a workspace.
func TestWatchActivityOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		var numbers []int
		for n := range 1201 {
			numbers = append(numbers, n+1)
		}
		s.register(numbers...)
		w := s.watchActivity(nil)
		s.report(1, &pb.Stats{ConnectionCount: 1})
		_, err := w.Recv()
		require.NoError(t, err)
		for _, n := range numbers {
			s.report(n, &pb.Stats{ConnectionCount: 1})
		}
		s.report(2, &pb.Stats{ConnectionCount: 1})
		seen := map[string]bool{}
		for _, want := range []int{1000, 200} {
			m, err := w.Recv()
			require.NoError(t, err)
			require.Len(t, m.GetWorkspaces(), want)
			for _, ws := range m.GetWorkspaces() {
				seen[string(ws.GetWorkspaceId())] = true
			}
		}
		require.Len(t, seen, 1200)
	})
}

func TestWatchStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1, 2)
		all, second := s.watchStats(), s.watchStats(2)
		synctest.Wait()
		require.Equal(t, 2.0, s.counter("agentstatsd_watches", "stats"))
		require.Equal(t, 0.0, s.counter("agentstatsd_watches", "metadata"))
		entry := func(n int, reports int64, stats *pb.Stats) *pb.AgentStats {
			return &pb.AgentStats{AgentId: bid(n), WorkspaceId: bid(10_000 + n), Reports: reports, Stats: stats, ReceivedAt: timestamppb.Now()}
		}
		requireNext := func(w *statsWatcher, want ...*pb.AgentStats) {
			t.Helper()
			got := w.next()
			require.Empty(t, cmp.Diff(want, got.GetAgents(), protocmp.Transform()))
			w.ack(got.GetSequence())
		}
		full := &pb.Stats{
			ConnectionsByProto: map[string]int64{"TCP": 3}, ConnectionCount: 3, ConnectionMedianLatencyMs: 1.5,
			RxPackets: 1, RxBytes: 2, TxPackets: 3, TxBytes: 4,
			SessionCountVscode: 5, SessionCountJetbrains: 6, SessionCountReconnectingPty: 7, SessionCountSsh: 8,
			SessionCounts: map[string]int64{"cursor": 2, "new": 1},
			Metrics:       gauge("g", 1).GetMetrics(),
		}
		c := s.connect(1, 1, 1)
		c.send(stats(full))
		full.Metrics = nil
		requireNext(all, entry(1, 1, full))

		// Reports that come together are made one, in the order of the agents.
		s.report(2, &pb.Stats{RxBytes: 10, RxPackets: agent.MaxReportedBytes, TxBytes: -4, ConnectionCount: 9, SessionCounts: map[string]int64{"old": 1}})
		synctest.Wait() // it is told alone
		s.report(2, &pb.Stats{RxBytes: 20, RxPackets: 5, TxBytes: 7, TxPackets: 3, ConnectionCount: 1})
		requireNext(second, entry(2, 1, &pb.Stats{RxBytes: 10, RxPackets: agent.MaxReportedBytes, ConnectionCount: 9, SessionCounts: map[string]int64{"old": 1}}))
		c.send(stats(&pb.Stats{RxBytes: 1}))
		synctest.Wait()
		both := entry(2, 2, &pb.Stats{RxBytes: 30, RxPackets: agent.MaxReportedBytes + 5, TxBytes: 7, TxPackets: 3, ConnectionCount: 1})
		one := entry(1, 1, &pb.Stats{RxBytes: 1})
		requireNext(all, one, both)
		require.Equal(t, 250*time.Millisecond, time.Since(both.GetReceivedAt().AsTime()))
	})
}

// TestWatchStatsBounds shows what is told of a report that is all names.
func TestWatchStatsBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		w := s.watchStats()
		synctest.Wait()
		counts := map[string]int64{"vscode": 1, strings.Repeat("a", 129): 1, strings.Repeat("a", 128): -1}
		for i := range 100 {
			counts[fmt.Sprintf("b%03d", i)] = 1
		}
		s.report(1, &pb.Stats{SessionCounts: counts, ConnectionsByProto: counts})
		m, err := w.Recv()
		require.NoError(t, err)
		for _, got := range []map[string]int64{m.GetAgents()[0].GetStats().GetSessionCounts(), m.GetAgents()[0].GetStats().GetConnectionsByProto()} {
			require.Len(t, got, 63, "64 are looked at, and one of them is too long")
			require.Equal(t, int64(1), got["vscode"])
			require.Contains(t, got, strings.Repeat("a", 128))
			require.Zero(t, got[strings.Repeat("a", 128)])
		}
	})
}

func TestWatchReportsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{api: agentapi.Options{MaxWatches: 2}})
		s.register(1)
		ctx, cancel := context.WithCancel(s.asCoderd())
		activity, err := s.coderd().WatchActivity(ctx, &pb.WatchActivityRequest{})
		require.NoError(t, err)
		reports := s.watchStats()
		synctest.Wait()
		_, err = s.watchStats(1).Recv()
		requireCode(t, err, codes.ResourceExhausted, "want at most 2 watches at once")
		cancel()
		_, err = activity.Recv()
		require.Equal(t, codes.Canceled, codeOf(err))
		synctest.Wait()
		_, err = s.watchStats(1, 1).Recv()
		requireCode(t, err, codes.InvalidArgument, fmt.Sprintf("agent_ids[1]: want each agent once, got %s again", nid(1)))
		synctest.Wait()
		activity = s.watchActivity(nil)

		began := time.Now()
		go s.stop()
		_, err = activity.Recv()
		requireCode(t, err, codes.Unavailable, "the service is stopping; connect again elsewhere or later")
		_, err = reports.Recv()
		requireCode(t, err, codes.Unavailable, "the service is stopping; connect again elsewhere or later")
		require.Zero(t, time.Since(began))
	})
}
