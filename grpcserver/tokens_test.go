package grpcserver_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Streams of a removed token end, those of others go on: of agents, of coderd by another
// token, and of a relay.
func TestStreamsOfARemovedTokenEnd(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1, 2)
	const blue, green = "the blue token of coderd", "the green token of coderd"
	tokens := func(of ...grpcserver.Token) grpcserver.Tokens { return grpcserver.Tokens{Coderd: of} }
	both := tokens(grpcserver.NewToken("blue", blue), grpcserver.NewToken("green", green))
	require.NoError(t, s.Server.SetTokens(both))
	_, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
	require.Equal(t, codes.Unauthenticated, status.Code(err), "it is none any more")

	watch := func(token string) (next func() error) {
		w, err := s.Coderd().WatchMetadata(edgetest.As(t.Context(), token), &pb.WatchMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
		require.NoError(t, err)
		for {
			m, err := w.Recv()
			require.NoError(t, err)
			if m.GetSynced() {
				break
			}
		}
		return func() error { _, err := w.Recv(); return err }
	}
	ofBlue, ofGreen := watch(blue), watch(green)
	own := s.Open(edgetest.As(t.Context(), edgetest.Token(2)))
	require.NoError(t, own.Send(edgetest.Hello(edgetest.Session{})))
	relay, err := s.Agents().RelayAgents(edgetest.As(t.Context(), blue))
	require.NoError(t, err)

	require.Equal(t, 1.0, s.Counter("agentstatsd_token_calls_total", "green"))
	require.NoError(t, s.Server.SetTokens(tokens(grpcserver.NewToken("green", green))))
	require.Equal(t, codes.Unauthenticated, status.Code(ofBlue()))
	_, err = relay.Recv()
	require.Equal(t, codes.Unauthenticated, status.Code(err))
	_, err = s.Coderd().ListAgents(edgetest.As(t.Context(), green), &pb.ListAgentsRequest{})
	require.NoError(t, err)
	_, err = s.Coderd().ListAgents(edgetest.As(t.Context(), blue), &pb.ListAgentsRequest{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))

	ended := make(chan error, 1)
	go func() { ended <- ofGreen() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = s.Coderd().GetMetadata(edgetest.As(ctx, green), &pb.GetMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
	require.NoError(t, err)
	require.Empty(t, ended, "it goes on")
	require.NoError(t, s.Server.SetTokens(grpcserver.Tokens{Operator: []grpcserver.Token{grpcserver.NewToken("green", green)}}), "it may do less")
	require.Equal(t, codes.Unauthenticated, status.Code(<-ended))
}

func TestTokensThatAreRefused(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	one := grpcserver.NewToken("one", "0123456789abcdef")
	for want, tokens := range map[string]grpcserver.Tokens{
		`tokens: want each name of coderd once, got "one" again`:             {Coderd: []grpcserver.Token{one, grpcserver.NewToken("one", "x")}},
		`tokens: want one of its own for "two" of push, got that of another`: {Coderd: []grpcserver.Token{one}, Push: []grpcserver.Token{{Name: "two", Hash: one.Hash}}},
		`tokens: "none" of operator: want a hash, got none`:                  {Operator: []grpcserver.Token{{Name: "none"}}},
	} {
		require.EqualError(t, s.Server.SetTokens(tokens), want)
	}
	_, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
	require.NoError(t, err, "nothing has changed")
}
