package agentapi_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func codeOf(err error) codes.Code { return status.Code(err) }

func TestCallsWithoutASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		ctx := as(t.Context(), token(1))

		resp, err := s.agents().UpdateStats(ctx, &pb.UpdateStatsRequest{})
		require.NoError(t, err)
		require.Equal(t, 30*time.Second, resp.GetReportInterval().AsDuration())
		require.Empty(t, s.exposition("coderd_agentstats"), "who only asks for the interval is not there")

		var trailer metadata.MD
		_, err = s.agents().UpdateStats(ctx, &pb.UpdateStatsRequest{Stats: &pb.Stats{
			RxBytes: 10, Metrics: []*pb.Stats_Metric{{Name: "custom", Value: 1}, {Name: "bad name"}},
		}}, grpc.Trailer(&trailer))
		require.NoError(t, err, "a second attempt would count bytes twice")
		require.Len(t, s.exposition("custom"), 1)
		var refusal pb.Refusal
		require.NoError(t, proto.Unmarshal([]byte(trailer.Get("agentstats-refusal-bin")[0]), &refusal))
		require.Equal(t, []string{"bad name"}, refusal.GetNames())

		_, err = s.agents().BatchUpdateMetadata(ctx, &pb.BatchUpdateMetadataRequest{Metadata: entries("k", "1", "", "2")})
		require.Equal(t, codes.InvalidArgument, codeOf(err), "%v", err)
		_, err = s.agents().BatchUpdateMetadata(ctx, &pb.BatchUpdateMetadataRequest{Metadata: entries("k", "3")})
		require.NoError(t, err)
		require.Empty(t, s.stored(1), "pending, not durable")

		_, err = s.agents().UpdateLifecycle(ctx, &pb.UpdateLifecycleRequest{})
		requireCode(t, err, codes.InvalidArgument, "lifecycle: want it, got none")
		_, err = s.agents().UpdateLifecycle(ctx, &pb.UpdateLifecycleRequest{Lifecycle: &pb.Lifecycle{State: -999}})
		requireCode(t, err, codes.InvalidArgument, "lifecycle.state: unknown lifecycle state -999")
		for name, at := range map[string]*timestamppb.Timestamp{
			"absent": nil, "the zero of protobuf": {}, "the zero of Go": timestamppb.New(time.Time{}),
		} {
			got, err := s.agents().UpdateLifecycle(ctx, &pb.UpdateLifecycleRequest{Lifecycle: &pb.Lifecycle{State: pb.Lifecycle_STATE_READY, ChangedAt: at}})
			require.NoError(t, err)
			require.Equal(t, pb.Lifecycle_STATE_READY, got.GetState())
			require.Equal(t, time.Now().UTC(), got.GetChangedAt().AsTime(), name)
		}
		got, err := s.agents().UpdateLifecycle(ctx, &pb.UpdateLifecycleRequest{Lifecycle: &pb.Lifecycle{State: pb.Lifecycle_STATE_OFF, ChangedAt: timestamppb.New(day)}})
		require.NoError(t, err)
		require.Equal(t, day, got.GetChangedAt().AsTime())

		_, err = s.agents().BatchUpdateAppHealths(ctx, &pb.BatchUpdateAppHealthsRequest{Updates: []*pb.AppHealthUpdate{
			{Id: bid(50_001), Health: pb.AppHealth_APP_HEALTH_UNHEALTHY}, {Id: bid(3), Health: pb.AppHealth_APP_HEALTH_HEALTHY},
		}})
		requireCode(t, err, codes.InvalidArgument, "app_health.updates.id: want one of the 1 apps of the agent's registration")

		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"k=3"}, s.stored(1))
		states, _, err := s.store.States(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, agent.LifecycleOff, states[0].Lifecycle.State)
		require.Equal(t, agent.AppHealthUnhealthy, states[0].AppHealth[nid(50_001)])

		// The report keeps its series for the TTL.
		time.Sleep(2*time.Minute - 11*time.Second)
		require.Len(t, s.exposition("custom"), 1)
		time.Sleep(2 * time.Second)
		require.Empty(t, s.exposition("custom"))
		_, err = s.agents().UpdateStats(ctx, &pb.UpdateStatsRequest{Stats: gauge("custom", 2)})
		require.NoError(t, err)
		require.Len(t, s.exposition("custom"), 1)
		time.Sleep(time.Hour)
		_, err = s.agents().UpdateStats(ctx, &pb.UpdateStatsRequest{Stats: gauge("custom", 2)})
		require.NoError(t, err)
		require.Len(t, s.exposition("custom"), 1, "after its run of calls was over")

		c := s.connect(1, 1, 1)
		_, err = s.agents().UpdateStats(ctx, &pb.UpdateStatsRequest{Stats: &pb.Stats{}})
		requireCode(t, err, codes.FailedPrecondition, "the agent has a session")
		_, err = s.agents().BatchUpdateMetadata(ctx, &pb.BatchUpdateMetadataRequest{})
		requireCode(t, err, codes.FailedPrecondition, "the agent has a session")
		_, err = s.agents().UpdateLifecycle(ctx, &pb.UpdateLifecycleRequest{Lifecycle: &pb.Lifecycle{State: pb.Lifecycle_STATE_OFF}})
		requireCode(t, err, codes.FailedPrecondition, "the agent has a session")
		_, err = s.agents().BatchUpdateAppHealths(ctx, &pb.BatchUpdateAppHealthsRequest{})
		requireCode(t, err, codes.FailedPrecondition, "the agent has a session")
		require.NoError(t, c.CloseSend())
		c.requireEnd(codes.OK, "")
		_, err = s.agents().UpdateStats(ctx, &pb.UpdateStatsRequest{Stats: &pb.Stats{}})
		require.NoError(t, err)
	})
}

func TestCallTooLarge(t *testing.T) {
	s := start(t, settings{api: agentapi.Options{MaxAgentMessageBytes: 1000}})
	s.register(1)
	_, err := s.agents().BatchUpdateMetadata(as(t.Context(), token(1)), &pb.BatchUpdateMetadataRequest{Metadata: entries("k", strings.Repeat("x", 1000))})
	requireCode(t, err, codes.ResourceExhausted, "message: want at most 1000 bytes, got 1012")
	_, err = s.agents().UpdateStats(as(t.Context(), token(1)), &pb.UpdateStatsRequest{Stats: gauge(strings.Repeat("x", 5<<20), 1)})
	require.Equal(t, codes.ResourceExhausted, codeOf(err))
}

// panics is a component that is broken.
type panics struct{}

func (panics) Report(agent.ID, int64, time.Time, agent.Report) []agent.Refusal {
	panic("secret of the service")
}

func TestPanicsStayInside(t *testing.T) {
	s := start(t, settings{change: func(c *agentapi.Components) { c.Stats = panics{} }})
	s.register(1, 2)
	_, err := s.agents().UpdateStats(as(t.Context(), token(1)), &pb.UpdateStatsRequest{Stats: &pb.Stats{}})
	requireCode(t, err, codes.Internal, "internal error")
	c := s.connect(2, 1, 1)
	c.send(stats(&pb.Stats{}))
	c.requireEnd(codes.Internal, "internal error")
	require.Equal(t, 2.0, s.counter("agentstatsd_panics_total", ""))
	require.Contains(t, s.log.String(), "secret of the service")
	require.Contains(t, s.log.String(), "panics.Report", "the stack")
	c = s.connect(2, 1, 2)
	require.Zero(t, c.settings.GetResume().GetReceivedSequence(), "what was not taken in is not received")
}

func TestPanicEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, settings{change: func(c *agentapi.Components) { c.Stats = panics{} }})
		s.register(1)
		c := s.connect(1, 1, 1)
		require.Equal(t, 1.0, s.counter("agentstatsd_sessions", ""))
		c.send(stats(&pb.Stats{}))
		c.requireEnd(codes.Internal, "internal error")
		synctest.Wait()
		require.Zero(t, s.counter("agentstatsd_sessions", ""))
	})
}

func TestMetrics(t *testing.T) {
	s := start(t, settings{})
	problems, err := testutil.GatherAndLint(s.registry)
	require.NoError(t, err)
	for _, p := range problems {
		require.NotContains(t, p.Metric, "agentstatsd_", p.Text)
	}
	n, err := testutil.GatherAndCount(s.registry, "grpc_server_handling_seconds")
	require.NoError(t, err)
	require.Positive(t, n, "every method from the start")
}

func TestOptions(t *testing.T) {
	for want, opts := range map[string]agentapi.Options{
		"agentapi options: report interval: want at least 1s, got 1ms":                                          {ReportInterval: time.Millisecond},
		"agentapi options: max agent message bytes: want at most the max message bytes of 4194304, got 8388608": {MaxAgentMessageBytes: 8 << 20},
		"agentapi options: drain timeout: want at least 0, got -1":                                              {DrainTimeout: -1},
	} {
		_, err := agentapi.NewServer(agentapi.Components{}, opts, prometheus.NewRegistry(), nil)
		require.EqualError(t, err, want)
	}
}
