package adminapi_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// collect returns the files of a bundle.
func collect(t *testing.T, s *edgetest.Service, req *pb.CollectBundleRequest) (files map[string]string, err error) {
	t.Helper()
	stream, err := pb.NewAdminServiceClient(s.Conn).CollectBundle(edgetest.As(t.Context(), edgetest.OperatorToken), req)
	require.NoError(t, err)
	files = make(map[string]string)
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		require.LessOrEqual(t, len(part.GetData()), 256<<10)
		files[part.GetName()] += string(part.GetData())
	}
}

// A bundle has the log, the metrics and profiles that go tool pprof reads.
func TestCollectBundle(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	files, err := collect(t, s, &pb.CollectBundleRequest{CpuProfile: durationpb.New(50 * time.Millisecond)})
	require.NoError(t, err)
	require.Equal(t, "a line\n", files["log.txt"])
	require.Contains(t, files["metrics.txt"], "agentstatsd_agents_registered")
	require.Contains(t, files["goroutines.txt"], "adminapi.(*Service).CollectBundle")
	for _, name := range []string{"heap.pprof", "allocs.pprof", "mutex.pprof", "block.pprof", "cpu.pprof"} {
		_, err := profile.ParseData([]byte(files[name]))
		require.NoError(t, err, name)
	}
	without, err := collect(t, s, &pb.CollectBundleRequest{})
	require.NoError(t, err)
	require.NotContains(t, without, "cpu.pprof")
	for _, d := range []time.Duration{-1, time.Minute} {
		_, err = collect(t, s, &pb.CollectBundleRequest{CpuProfile: durationpb.New(d)})
		edgetest.RequireCodeContains(t, err, codes.InvalidArgument, "cpu_profile: want 0s to 30s")
	}
}

// Metrics of a component that cannot say them are missing, and the rest is there.
func TestBundleWithoutSomeMetrics(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{ChangeAdmin: func(c *adminapi.Components) {
		c.Metrics = prometheus.Gatherers{c.Metrics, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errors.New("a\nfault") })}
	}})
	files, err := collect(t, s, &pb.CollectBundleRequest{})
	require.NoError(t, err)
	require.Contains(t, files["metrics.txt"], "agentstatsd_agents_registered")
	require.Contains(t, files["metrics.txt"], `a\nfault`)
	require.Contains(t, files, "goroutines.txt")
}

// One bundle is collected at a time.
func TestBundlesAreOneAtATime(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	stream, err := pb.NewAdminServiceClient(s.Conn).CollectBundle(s.AsCoderd(), &pb.CollectBundleRequest{CpuProfile: durationpb.New(30 * time.Second)})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	_, err = collect(t, s, &pb.CollectBundleRequest{})
	edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "one bundle")
}

func TestListPushes(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	push := agent.Push{Replica: "coderd-1", Instance: agent.Instance{1, 2}, Interval: time.Second, Snapshot: 1, Final: true}
	for _, name := range []string{"a_total", "b_total"} {
		push.Families = append(push.Families, edgetest.Family(t, &dto.MetricFamily{
			Name: &name, Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{{Counter: &dto.Counter{Value: proto.Float64(1)}}},
		}))
	}
	refused, err := s.Pushed.Push(t.Context(), at, push)
	require.NoError(t, err)
	require.Empty(t, refused)
	resp, err := pb.NewAdminServiceClient(s.Conn).ListPushes(edgetest.As(t.Context(), edgetest.OperatorToken), &pb.ListPushesRequest{})
	require.NoError(t, err)
	require.Len(t, resp.GetPushers(), 1)
	p := resp.GetPushers()[0]
	require.Equal(t, "coderd-1", p.GetReplica())
	require.Equal(t, "01020000000000000000000000000000", p.GetInstance())
	require.Equal(t, 2.0, p.GetFamilies())
	require.True(t, p.GetExpired())
	require.Equal(t, at, p.GetPushedAt().AsTime())
}
