package agentapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// noted keeps what agents were refused, as "agent reason count".
type noted struct {
	mu    sync.Mutex
	lines []string
	texts []string
}

func (n *noted) Refused(id agent.ID, version string, refused []agent.Refusal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range refused {
		n.lines = append(n.lines, strings.TrimSpace(fmt.Sprintf("%d %s %d %s", id[15], r.Reason, r.Count, version)))
		n.texts = append(n.texts, r.Message)
	}
}

func (n *noted) Expired(id agent.ID, r agent.Refusal) { n.Refused(id, "expired", []agent.Refusal{r}) }

// take returns and forgets what was noted.
func (n *noted) take() (lines, texts string) {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	lines, texts = strings.Join(n.lines, "\n"), strings.Join(n.texts, "\n")
	n.lines, n.texts = nil, nil
	return lines, texts
}

// start starts a service whose refusals are noted.
func (n *noted) start(t *testing.T, set edgetest.Settings) *edgetest.Service {
	set.ChangeAgents = func(c *agentapi.Components) { c.Refusals = n }
	return edgetest.Start(t, set)
}

// bothWays runs a test in a bubble, with agents' own streams and with one that relays.
func bothWays(t *testing.T, f func(t *testing.T)) {
	for _, relayed := range []bool{false, true} {
		t.Run(fmt.Sprint("relayed ", relayed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				if relayed {
					edgetest.OverRelay(t)
				}
				f(t)
			})
		})
	}
}

// requireEnds receives until the stream ends with the code.
func requireEnds(t *testing.T, c *edgetest.Stream, code codes.Code) {
	t.Helper()
	for {
		if _, err := c.Recv(); err != nil {
			require.Equal(t, code, status.Code(err), err)
			return
		}
	}
}

// All that is refused of an agent is noted, and what ends its stream.
func TestRefusalsAreNoted(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		var n noted
		s := n.start(t, edgetest.Settings{})
		s.Register(1, 2)
		c := s.Connect(edgetest.Session{Agent: 1})
		request := edgetest.Stats(edgetest.Gauge("not a name", 1))
		request.Metadata = edgetest.Metadata("", "v").GetMetadata()
		c.SendNext(request)
		lines, texts := n.take()
		require.Equal(t, "1 invalid_name 1\n1 empty_key 1", lines)
		require.Equal(t, "sample name \"not a name\" is not like [a-zA-Z_:][a-zA-Z0-9_:]*\nmetadata key is empty", texts)

		c.SendNext(edgetest.Stats(edgetest.Gauge("a_name", 1)))
		lines, _ = n.take()
		require.Empty(t, lines, "nothing is refused")

		require.NoError(t, c.Send(&pb.ConnectRequest{Sequence: 3}))
		requireEnds(t, c, codes.InvalidArgument)
		lines, texts = n.take()
		require.Equal(t, "1 broken_message 1", lines)
		require.Contains(t, texts, "message: want any of stats")

		c = s.Connect(edgetest.Session{Agent: 2})
		c.SendNext(edgetest.Goodbye())
		c.RequireEnd(codes.OK, "")
		lines, _ = n.take()
		require.Empty(t, lines, "a goodbye is none")
	})
}

// An agent that is sent away for a while is noted, also when it comes back too early.
func TestAgentsThatAreSentAwayAreNoted(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		var n noted
		s := n.start(t, edgetest.Settings{Fleet: fleet.Options{RefusedBurst: 5, RefusedPerSecond: 1}})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		report := &pb.Stats{}
		for i := range 10 {
			report.Metrics = append(report.Metrics, edgetest.Gauge(fmt.Sprint("not a name ", i), 1).GetMetrics()...)
		}
		c.SendNext(edgetest.Stats(report))
		requireEnds(t, c, codes.ResourceExhausted)
		lines, texts := n.take()
		require.Equal(t, "1 invalid_name 10\n1 limit 1", lines)
		require.Contains(t, texts, "--agent-refused-burst")
		again := s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
		require.NoError(t, again.Send(edgetest.Hello(edgetest.Session{Agent: 1, Number: 2})))
		requireEnds(t, again, codes.ResourceExhausted)
		lines, _ = n.take()
		require.Equal(t, "1 limit 1", lines)
	})
}

// The version that an agent says of itself is noted with what it is refused.
func TestVersionsAreNoted(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		var n noted
		s := n.start(t, edgetest.Settings{})
		s.Register(1)
		c := s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
		hello := edgetest.Hello(edgetest.Session{Agent: 1})
		hello.Hello.Version = "v2.1.0" + strings.Repeat("x", 100)
		require.NoError(t, c.Send(hello))
		c.SendNext(edgetest.Metadata("", "v"))
		lines, _ := n.take()
		require.Equal(t, "1 empty_key 1 v2.1.0"+strings.Repeat("x", 58), lines)
		require.NoError(t, c.Send(&pb.ConnectRequest{Sequence: 3}))
		requireEnds(t, c, codes.InvalidArgument)
		lines, _ = n.take()
		require.Contains(t, lines, "1 broken_message 1 v2.1.0")
	})
}

// What the database refuses is noted when the agent is sent it.
func TestRefusalsOfTheDatabaseAreNoted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var n noted
		s, _ := startRejecting(t, edgetest.Settings{}, batcher.Options{BatchSize: 1, FlushInterval: 5 * time.Millisecond, MaxPending: 1000}, &n)
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		c.SendNext(edgetest.Metadata("cpu", "99"))
		for refused := false; !refused; {
			refused = edgetest.RefusalOf(c.Next()) != nil
		}
		lines, texts := n.take()
		require.Equal(t, "1 rejected 1", lines)
		require.Equal(t, `the database refused the value of key "cpu"`, texts)
	})
}

// A stream that ends as its agent says nothing is noted as one that expired.
func TestIdleStreamsAreNoted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var n noted
		s := n.start(t, edgetest.Settings{Server: grpcserver.Options{IdleTimeout: 90 * time.Second}})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		requireEnds(t, c, codes.DeadlineExceeded)
		lines, texts := n.take()
		require.Equal(t, "1 timeout 1 expired", lines)
		require.Equal(t, "message: want one within 1m30s (--agent-idle-timeout)", texts)
	})
}

// An agent with too many streams is noted, too: its call does not reach this service.
func TestTooManyStreamsAreNoted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var n noted
		s := n.start(t, edgetest.Settings{Server: grpcserver.Options{MaxStreamsPerAgent: 2}})
		s.Register(1)
		for range 2 {
			s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
			synctest.Wait()
		}
		requireEnds(t, s.Open(edgetest.As(t.Context(), edgetest.Token(1))), codes.ResourceExhausted)
		lines, _ := n.take()
		require.Equal(t, "1 limit 1", lines)
	})
}

// The client's Logger has what is refused without a callback, and the service the version
// that the client says.
func TestClientLogsRefusals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var n noted
		s, _ := startRejecting(t, edgetest.Settings{}, batcher.Options{BatchSize: 1, FlushInterval: 5 * time.Millisecond, MaxPending: 1000}, &n)
		s.Register(1)
		out := &edgetest.Log{}
		a, err := client.NewAgent(s.Conn, client.AgentOptions{
			Credentials: client.Token(edgetest.Token(1), true), Version: "v2.1.0", Logger: slog.New(slog.NewTextHandler(out, nil)),
		})
		require.NoError(t, err)
		var running sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer running.Wait()
		defer cancel()
		running.Go(func() { _ = a.Run(ctx) })
		for i := range 3 {
			require.NoError(t, a.UpdateMetadata(client.Metadata{Key: fmt.Sprint("k", i), Value: "v"}))
			flushAll(t, a)
		}
		lines, _ := n.take()
		require.Equal(t, "1 rejected 1 v2.1.0\n1 rejected 1 v2.1.0\n1 rejected 1 v2.1.0", lines)
		const line = `level=WARN msg="the service refuses something of an agent" reason=rejected count=1 problem="the database refused the value of key "k0"" names=k0`
		// The quotes of the problem are escaped.
		require.Equal(t, 1, strings.Count(out.String(), "the service refuses something of an agent"), out.String())
		require.Contains(t, strings.ReplaceAll(out.String(), `\"`, `"`), line)
	})
}

// Sessions are in the log for who debugs, with how they ended.
func TestSessionsAreLoggedForDebugging(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{LogLevel: slog.LevelDebug})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		epoch := c.Settings.GetEpoch()
		of := fmt.Sprintf("agent=%s epoch=%d relayed=%t", edgetest.ID(1), epoch, edgetest.IsOverRelay(t))
		synctest.Wait() // the line comes after the settings
		require.Equal(t, 1, strings.Count(s.Log.String(), `level=DEBUG msg="session opened" `+of))
		c.SendNext(edgetest.Goodbye())
		c.RequireEnd(codes.OK, "")
		synctest.Wait()
		require.Equal(t, 1, strings.Count(s.Log.String(), `level=DEBUG msg="session ended" `+of+" end=goodbye"), s.Log.String())
		s = edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		s.Connect(edgetest.Session{Agent: 1})
		require.NotContains(t, s.Log.String(), "session opened")
	})
}
