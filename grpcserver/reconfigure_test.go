package grpcserver_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func reconfigure(s *edgetest.Service, change func(*grpcserver.Options)) error {
	opts := s.Server.Options()
	change(&opts)
	return s.Server.Reconfigure(opts)
}

func TestReconfigureConnections(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{MaxConnections: 2}})
	s.Register(1)
	list := func(c *grpc.ClientConn) error {
		_, err := pb.NewCoderdServiceClient(c).ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		return err
	}
	second := newClient(s)
	require.NoError(t, list(second))
	requireClosed(t, dial(s))

	require.NoError(t, reconfigure(s, func(o *grpcserver.Options) { o.MaxConnections = 3 }))
	require.NoError(t, list(newClient(s)))
	requireClosed(t, dial(s))

	require.NoError(t, reconfigure(s, func(o *grpcserver.Options) { o.MaxConnections = 1 }))
	require.NoError(t, list(second), "what there is stays")
	require.Equal(t, 3.0, s.Counter("agentstatsd_grpc_connections", ""))
	requireClosed(t, dial(s))

	require.Error(t, reconfigure(s, func(o *grpcserver.Options) { o.MaxConnections = -1 }))
	require.Equal(t, 1, s.Server.Options().MaxConnections)
}

// A lowered size of messages refuses those of new calls, and one is refused by its name.
func TestReconfigureMessages(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	register := func(bytes int) error {
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{
			Agents: []*pb.AgentRegistration{{Name: strings.Repeat("x", bytes)}},
		})
		return err
	}
	resize := func(message, receiving int) error {
		return reconfigure(s, func(o *grpcserver.Options) {
			o.MaxMessageBytes, o.MaxAgentMessageBytes, o.MaxReceivingBytes = message, min(message, 1<<20), receiving
		})
	}
	require.NoError(t, register(200<<10))
	require.NoError(t, resize(128<<10, 256<<10))
	edgetest.RequireCode(t, register(200<<10), codes.ResourceExhausted, "message: want at most 131072 bytes (--max-message-bytes), got 204808")
	require.NoError(t, register(100<<10))
	require.NoError(t, resize(8<<20, 16<<20))
	require.NoError(t, register(6<<20), "above what gRPC takes by default")
	require.EqualError(t, resize(8<<20, 8<<20), "grpcserver options: max receiving bytes: want at least 16777216, twice the max message bytes, got 8388608")
}

func TestReconfigureStreamsOfAnAgent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxStreamsPerAgent: 1}})
		s.Register(1)
		ctx := edgetest.As(t.Context(), edgetest.Token(1))
		connected := s.Connect(edgetest.Session{Agent: 1})
		_, err := s.Open(ctx).Recv()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 1 streams of an agent at once (--max-streams-per-agent)")

		require.NoError(t, reconfigure(s, func(o *grpcserver.Options) { o.MaxStreamsPerAgent = 2 }))
		second := s.Open(ctx)
		require.NoError(t, second.CloseSend())
		_, err = second.Recv()
		edgetest.RequireCode(t, err, codes.InvalidArgument, "hello: want it as the first message, got none")

		require.NoError(t, reconfigure(s, func(o *grpcserver.Options) { o.MaxStreamsPerAgent = 1 }))
		connected.SendNext(edgetest.Stats(&pb.Stats{}))
		connected.RequireDurable(1)
	})
}
