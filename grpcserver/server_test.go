package grpcserver_test

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// panics is a component that is broken.
type panics struct{}

func (panics) Report(agent.ID, int64, time.Time, agent.Report) ([]agent.Refusal, int) {
	panic("secret of the service")
}

func (panics) AddBytes(agent.ID, int64, time.Time, agent.Stats) []agent.Refusal {
	panic("secret of the service")
}

func (panics) MetadataWithin(context.Context, []agent.ID, int) ([]agent.Metadata, []agent.ID, error) {
	panic("another secret")
}

func TestPanicsStayInside(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{
		ChangeAgents: func(c *agentapi.Components) { c.Stats = panics{} },
		ChangeCoderd: func(c *coderdapi.Components) { c.Reader = panics{} },
	})
	s.Register(1, 2)
	c := s.Connect(edgetest.Session{Agent: 2})
	c.SendNext(edgetest.Stats(&pb.Stats{}))
	c.RequireEnd(codes.Internal, "internal error")
	_, err := s.Coderd().GetMetadata(s.AsCoderd(), &pb.GetMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
	edgetest.RequireCode(t, err, codes.Internal, "internal error")
	require.Equal(t, 2.0, s.Counter("agentstatsd_panics_total", ""))
	require.Contains(t, s.Log.String(), "secret of the service")
	require.Contains(t, s.Log.String(), "panics.Report", "the stack")
	require.NotContains(t, s.Log.String(), "another secret", "one a minute")
	c = s.Connect(edgetest.Session{Agent: 2, Number: 2})
	require.Zero(t, c.Settings.GetResume().GetReceivedSequence(), "what was not taken in is not received")
}

func TestMetrics(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	problems, err := testutil.GatherAndLint(s.Registry)
	require.NoError(t, err)
	for _, p := range problems {
		require.NotContains(t, p.Metric, "agentstatsd_", p.Text)
	}
	n, err := testutil.GatherAndCount(s.Registry, "grpc_server_handling_seconds")
	require.NoError(t, err)
	require.Positive(t, n, "every method from the start")
}

func TestOptions(t *testing.T) {
	for want, opts := range map[string]grpcserver.Options{
		"grpcserver options: max agent message bytes: want at most the max message bytes of 4194304, got 8388608": {MaxAgentMessageBytes: 8 << 20},
		"grpcserver options: drain timeout: want at least 0, got -1":                                              {DrainTimeout: -1},
	} {
		_, err := grpcserver.New(nil, opts, prometheus.NewRegistry(), nil)
		require.EqualError(t, err, want)
	}
}
