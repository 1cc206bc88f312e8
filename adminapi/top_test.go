package adminapi_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// topLines returns the agents of the next answer, with what they use.
func topLines(t *testing.T, stream grpc.ServerStreamingClient[pb.TopAgentsResponse]) (resp *pb.TopAgentsResponse, lines []string) {
	t.Helper()
	resp, err := stream.Recv()
	require.NoError(t, err)
	for _, a := range resp.GetAgents() {
		lines = append(lines, fmt.Sprintf("%s/%s.%s %s: %v series, %v messages, %v refused", a.GetOwner(), a.GetWorkspace(), a.GetName(), a.GetTemplate(),
			a.GetSeries(), a.GetRates().GetMessages(), a.GetRates().GetRefused()))
		require.Equal(t, a.GetRates().GetMessages() > 0, a.GetRates().GetBytes() > 0)
	}
	return resp, lines
}

// Each step has what was used in it, the most first.
func TestTopAgents(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1, 2, 3)
		one, two := s.Connect(edgetest.Session{Agent: 1}), s.Connect(edgetest.Session{Agent: 2})
		top := func(by string, limit int32) grpc.ServerStreamingClient[pb.TopAgentsResponse] {
			stream, err := s.Operators().TopAgents(s.AsOperator(), &pb.TopAgentsRequest{By: by, Limit: limit, Interval: durationpb.New(10 * time.Second)})
			require.NoError(t, err)
			return stream
		}
		messages, series, refused := top("messages", 1), top("", 0), top("refused", 0)
		synctest.Wait()
		for _, req := range []*pb.ConnectRequest{edgetest.Stats(edgetest.Gauge("a", 1)), edgetest.Metadata("k", "v"), edgetest.Stats(edgetest.Gauge("1bad", 1))} {
			one.SendNext(req)
		}
		two.SendNext(edgetest.Stats(&pb.Stats{Metrics: []*pb.Stats_Metric{
			{Name: "b", Type: pb.Stats_Metric_TYPE_GAUGE}, {Name: "c", Type: pb.Stats_Metric_TYPE_GAUGE}, {Name: "d", Type: pb.Stats_Metric_TYPE_GAUGE},
		}}))
		resp, lines := topLines(t, messages)
		require.Equal(t, []string{"ada/ws1.main docker: 8 series, 0.3 messages, 0.1 refused"}, lines, "of the limit")
		require.Equal(t, 2.0, resp.GetSending())
		require.Equal(t, 0.4, resp.GetAll().GetMessages())
		require.Equal(t, 0.1, resp.GetAll().GetRefused())
		require.Greater(t, resp.GetAll().GetBytes(), resp.GetAgents()[0].GetRates().GetBytes())
		require.WithinDuration(t, time.Now(), resp.GetAt().AsTime(), 0)
		_, lines = topLines(t, series)
		require.Equal(t, []string{
			"ada/ws2.main docker: 10 series, 0.1 messages, 0 refused",
			"ada/ws1.main docker: 8 series, 0.3 messages, 0.1 refused",
		}, lines)
		_, lines = topLines(t, refused)
		require.Len(t, lines, 1)

		// In the next step nothing was sent.
		resp, lines = topLines(t, messages)
		require.Empty(t, lines)
		require.Equal(t, 0.0, resp.GetSending())
		_, lines = topLines(t, series)
		require.Equal(t, "ada/ws2.main docker: 10 series, 0 messages, 0 refused", lines[0])
	})
}

func TestTopAgentsIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		for want, req := range map[string]*pb.TopAgentsRequest{
			`by: want one of ["series" "messages" "bytes" "refused"], got "size"`: {By: "size"},
			"limit: want 0 to 1000, got 1001":                                     {Limit: 1001},
			"interval: want 1s to 1m0s, got 900ms":                                {Interval: durationpb.New(900 * time.Millisecond)},
			"interval: want 1s to 1m0s, got 0s":                                   {Interval: durationpb.New(0)},
		} {
			stream, err := s.Operators().TopAgents(s.AsOperator(), req)
			require.NoError(t, err)
			_, err = stream.Recv()
			edgetest.RequireCodeContains(t, err, codes.InvalidArgument, want)
		}
		ctx, cancel := context.WithCancel(s.AsOperator())
		for range 4 {
			stream, err := s.Operators().TopAgents(ctx, &pb.TopAgentsRequest{})
			require.NoError(t, err)
			_, err = stream.Recv()
			require.NoError(t, err)
		}
		stream, err := s.Operators().TopAgents(ctx, &pb.TopAgentsRequest{})
		require.NoError(t, err)
		_, err = stream.Recv()
		edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "want at most 4 streams of TopAgents at a time")
		cancel()
		synctest.Wait()
		stream, err = s.Operators().TopAgents(s.AsOperator(), &pb.TopAgentsRequest{})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.NoError(t, err)

		// One that is open does not hold up a stop.
		began := time.Now()
		go s.Stop()
		for err == nil {
			_, err = stream.Recv()
		}
		edgetest.RequireCodeContains(t, err, codes.Unavailable, "stopping")
		require.Less(t, time.Since(began), time.Second)
	})
}
