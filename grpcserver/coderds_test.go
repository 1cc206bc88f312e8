package grpcserver_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// awaitLogged waits until the log has a text.
func awaitLogged(t *testing.T, s *edgetest.Service, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(s.Log.String(), text) }, 30*time.Second, time.Millisecond, text)
}

// A coderd that connects is a line, and the end of its connection another one. Agents are
// none.
func TestCoderdsAreLogged(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true})
	lines := func(text string) int { return strings.Count(s.Log.String(), text) }
	s.Register(1)
	s.Register(2)
	require.Equal(t, 1, lines(`level=INFO msg="coderd has connected" peer=127.0.0.1 credential=coderd connections=1`), s.Log.String())

	pusher := newClient(s)
	push, err := pb.NewCoderdServiceClient(pusher).PushMetrics(edgetest.As(t.Context(), edgetest.PushToken))
	require.NoError(t, err)
	require.NoError(t, push.CloseSend())
	_, err = push.Recv()
	require.Error(t, err, "it says nothing")
	require.Equal(t, 1, lines(`msg="coderd has connected" peer=127.0.0.1 credential=push connections=2`), s.Log.String())

	s.Request(1, edgetest.Metadata("cpu", "1"))
	require.Equal(t, 2, lines("coderd has connected"))
	require.NoError(t, pusher.Close())
	awaitLogged(t, s, "a connection of coderd has ended") // it is looked for each second
	require.Equal(t, 1, lines(`level=INFO msg="a connection of coderd has ended" peer=127.0.0.1 credential=push`), s.Log.String())

	operator := newClient(s)
	_, err = pb.NewCoderdServiceClient(operator).ListAgents(edgetest.As(t.Context(), edgetest.OperatorToken), &pb.ListAgentsRequest{})
	require.NoError(t, err)
	require.Equal(t, 1, lines(`msg="coderd has connected" peer=127.0.0.1 credential=operator`), s.Log.String())
}
