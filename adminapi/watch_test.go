package adminapi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// watching watches an agent. It returns once the agent is watched.
func watching(ctx context.Context, s *edgetest.Service, name string) pb.AdminService_WatchAgentClient {
	s.T.Helper()
	w, err := s.Operators().WatchAgent(ctx, &pb.WatchAgentRequest{Agent: name})
	require.NoError(s.T, err)
	_, err = w.Header()
	require.NoError(s.T, err)
	return w
}

// requireEvents receives events, each as kind, sequence and text. An epoch is N.
func requireEvents(t *testing.T, w pb.AdminService_WatchAgentClient, want ...string) {
	t.Helper()
	for _, line := range want {
		e, err := w.Recv()
		require.NoError(t, err)
		require.Zero(t, e.GetMissed())
		require.True(t, time.Now().Equal(e.GetAt().AsTime()), "%v", e)
		got := fmt.Sprintf("%s %v: %s", e.GetKind(), e.GetSequence(), e.GetText())
		if before, after, ok := strings.Cut(got, "epoch "); ok {
			_, after, _ = strings.Cut(after, ",")
			got = before + "epoch N," + after
		}
		require.Equal(t, line, got)
	}
}

func TestWatchAgent(t *testing.T) { bubble.Test(t, testWatchAgent) }

func testWatchAgent(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1, 2)
	w := watching(s.AsOperator(), s, "ada/ws1")
	hello := edgetest.Hello(edgetest.Session{})
	hello.Hello.Version = "v2.31.0"
	c := s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
	require.NoError(t, c.Send(hello))
	c.Next()
	requireEvents(t, w, "hello 0: version v2.31.0, epoch N, instance 01000000000000000000000000000000")
	other := s.Connect(edgetest.Session{Agent: 2})
	other.SendNext(edgetest.Stats(edgetest.Gauge("other", 1)))

	report := edgetest.Gauge("load", 1)
	report.RxBytes, report.TxBytes, report.ConnectionCount, report.ConnectionMedianLatencyMs = 7, 8, 2, 1.5
	report.SessionCounts = map[string]int64{"ssh": 2}
	report.Metrics = append(report.Metrics, edgetest.Gauge("a-b", 1).GetMetrics()...)
	c.SendNext(&pb.ConnectRequest{Stats: report, Metadata: edgetest.Metadata("cpu", "secret").GetMetadata()})
	const stats = "stats %d: rx 7 bytes, tx 8 bytes, 2 connections, latency 1.5 ms, 1 session app: ssh 2; 2 samples: load, a-b"
	const refused = "refused %d: 1 for invalid_name: sample name \"a-b\" is not like [a-zA-Z_:][a-zA-Z0-9_:]*"
	requireEvents(t, w, fmt.Sprintf(stats, 1), "metadata 1: 1 key: cpu", fmt.Sprintf(refused, 1))

	// With other parts it is decoded otherwise.
	many := edgetest.Metadata("cpu", "secret", "err", "")
	many.Metadata.Metadata[1].Result.Error = "secret too"
	for n := range 12 {
		many.Metadata.Metadata = append(many.Metadata.Metadata, edgetest.Metadata(fmt.Sprint("key\n", n), "x").GetMetadata().GetMetadata()...)
	}
	c.SendNext(&pb.ConnectRequest{
		Stats: report, Metadata: many.GetMetadata(),
		Lifecycle: &pb.Lifecycle{State: pb.Lifecycle_STATE_READY, ChangedAt: timestamppb.New(edgetest.Day)},
		AppHealth: &pb.AppHealthReport{Updates: []*pb.AppHealthUpdate{
			{Id: edgetest.IDBytes(50_001), Health: pb.AppHealth_APP_HEALTH_HEALTHY}, {Id: edgetest.IDBytes(9), Health: 77},
		}},
		Network: &pb.Network{PreferredRegionId: 2, Regions: []*pb.Network_Region{{Id: 1, Latency: durationpb.New(3 * time.Millisecond)}, {Id: 2, Name: "near"}}},
	})
	requireEvents(t, w,
		fmt.Sprintf(stats, 2),
		"metadata 2: 14 keys: cpu, err (error), key\uFFFD0, key\uFFFD1, key\uFFFD2, key\uFFFD3, key\uFFFD4, key\uFFFD5, key\uFFFD6, key\uFFFD7 and 4 more",
		"lifecycle 2: ready since 1999-12-31T12:00:00Z",
		"app_health 2: 2 apps: code healthy, "+edgetest.ID(9).String()+" unknown health 77",
		"network 2: preferred region 2, 2 regions: region 1 3ms, near",
		"refused 2: 1 for invalid_field: app_health.updates[1].health: unknown health 77",
		fmt.Sprintf(refused, 2),
	)
	c.SendNext(edgetest.Lifecycle(99))
	requireEvents(t, w, "lifecycle 3: unknown state 99", "refused 3: 1 for unknown_state: lifecycle.state: unknown lifecycle state 99")
	c.SendNext(edgetest.Goodbye())
	requireEvents(t, w, "goodbye 4: the agent goes away for good")
	c.RequireEnd(codes.OK, "")
	requireEvents(t, w, "end 0: goodbye")

	// What ends a stream is told.
	c = s.Connect(edgetest.Session{Agent: 1, Instance: 2})
	requireEvents(t, w, "hello 0: version not said, epoch N, instance 02000000000000000000000000000000")
	require.NoError(t, c.Send(hello))
	requireEvents(t, w, "end 0: refused: hello: want it as the first message only")

	// The watch ends with the agent's registration.
	_, err := s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
	require.NoError(t, err)
	_, err = w.Recv()
	edgetest.RequireCode(t, err, codes.NotFound, fmt.Sprintf("agent: none is registered as %q", edgetest.ID(1)))
}

// Relayed agents are watched as others are.
func TestWatchRelayedAgent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		w := watching(s.AsCoderd(), s, "ada/ws1")
		relay := s.OpenRelay(s.AsCoderd())
		relay.Connect(t, edgetest.Session{Agent: 1})
		requireEvents(t, w, "hello 0: version not said, epoch N, instance 01000000000000000000000000000000, relayed")
	})
}

// Watches end when the service stops, at the latest then. There are no more of them than
// people need.
func TestWatchesAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		left, leave := context.WithCancel(s.AsOperator())
		gone := watching(left, s, "ada/ws1")
		leave()
		_, err := gone.Recv()
		edgetest.RequireCodeContains(t, err, codes.Canceled, "")
		synctest.Wait() // its handler has noticed it
		var all []pb.AdminService_WatchAgentClient
		for range 16 {
			all = append(all, watching(s.AsOperator(), s, "ada/ws1"))
		}
		over, err := s.Operators().WatchAgent(s.AsOperator(), &pb.WatchAgentRequest{Agent: "ada/ws1"})
		require.NoError(t, err)
		_, err = over.Recv()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 16 agents to be watched at a time, got one more")
		require.Equal(t, 10*time.Second, edgetest.RetryDelay(t, err))
		require.Equal(t, 1.0, s.Counter("agentstatsd_agent_watches_refused_total", ""))

		refused, err := s.Operators().WatchAgent(edgetest.As(t.Context(), edgetest.Token(1)), &pb.WatchAgentRequest{Agent: "ada/ws1"})
		require.NoError(t, err)
		_, err = refused.Recv()
		edgetest.RequireCodeContains(t, err, codes.PermissionDenied, "")

		began := time.Now()
		s.Stop()
		for _, w := range all {
			_, err := w.Recv()
			edgetest.RequireCodeContains(t, err, codes.Unavailable, "the service is stopping")
		}
		require.Less(t, time.Since(began), time.Second)
	})
}
