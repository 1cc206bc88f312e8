package agentapi_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// A session that is relayed is as one on a stream of its own: the tests of that are run
// over a stream that relays.
func TestRelayed(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"session":             TestSession,
		"violations":          TestViolations,
		"too much refused":    TestTooMuchIsRefused,
		"malformed message":   TestMalformedMessage,
		"refusals by name":    TestRefusalsByName,
		"session age":         TestSessionAge,
		"panic":               TestPanicEndsTheSession,
		"goodbye":             TestGoodbyeDoesNotWaitForEver,
		"database down":       TestDatabaseDown,
		"many agents":         TestManyAgents,
		"acks wait":           TestAcksWait,
		"acks of many":        TestManyRequestsAreAcked,
		"acks at once":        TestAckNow,
		"acks of a flush":     TestFlushHasOneAck,
		"acks before the end": TestAckBeforeTheEnd,
		"acks of reports":     TestAckOfAReportWaitsForItsWrite,
		"goodbye ends series": TestSeriesAreGoneWhenGoodbyeIsAcked,
	} {
		t.Run(name, func(t *testing.T) {
			edgetest.OverRelay(t)
			test(t)
		})
	}
}

// relayRaw opens a stream that relays without the rules of a caller.
func relayRaw(t *testing.T, s *edgetest.Service) pb.AgentService_RelayAgentsClient {
	t.Helper()
	stream, err := s.Agents().RelayAgents(s.AsCoderd())
	require.NoError(t, err)
	return stream
}

// helloOf is the first request of an agent's session.
func helloOf(index uint32, agent int) *pb.RelayedRequest {
	return &pb.RelayedRequest{Index: index, AgentId: edgetest.IDBytes(agent), Request: edgetest.Hello(edgetest.Session{})}
}

// requestOf is a later one.
func requestOf(index uint32, sequence int64, req *pb.ConnectRequest) *pb.RelayedRequest {
	req.Sequence = sequence
	return &pb.RelayedRequest{Index: index, Request: req}
}

func sendAll(t *testing.T, stream pb.AgentService_RelayAgentsClient, requests ...*pb.RelayedRequest) {
	t.Helper()
	require.NoError(t, stream.Send(&pb.RelayAgentsRequest{Requests: requests}))
}

// endOf receives until the end of a session. Responses of others are left out.
func endOf(t *testing.T, stream pb.AgentService_RelayAgentsClient, index uint32) *pb.RelayedEnd {
	t.Helper()
	for {
		m, err := stream.Recv()
		require.NoError(t, err)
		for _, r := range m.GetResponses() {
			if r.GetIndex() == index && r.GetEnd() != nil {
				return r.GetEnd()
			}
		}
	}
}

// streamError receives until the end of the stream.
func streamError(stream pb.AgentService_RelayAgentsClient) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

func TestRelayRules(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1, 2)
	stats := func(sequence int64) *pb.RelayedRequest {
		return requestOf(5, sequence, edgetest.Stats(edgetest.Gauge("custom", 1)))
	}
	end := &pb.RelayedRequest{Index: 5, End: true}
	for _, c := range []struct {
		name string
		send []*pb.RelayedRequest
		text string
	}{
		{"nothing in it", []*pb.RelayedRequest{{}}, "requests[0].request: want either it or end"},
		{"neither", []*pb.RelayedRequest{helloOf(5, 1), {Index: 5}}, "requests[1].request: want either it or end"},
		{"both", []*pb.RelayedRequest{helloOf(5, 1), {Index: 5, Request: &pb.ConnectRequest{}, End: true}}, "requests[1].request: want either it or end"},
		{"end at once", []*pb.RelayedRequest{{Index: 5, AgentId: edgetest.IDBytes(1), End: true}}, "requests[0].end: want none with agent_id"},
		{"index 0", []*pb.RelayedRequest{helloOf(0, 1)}, "requests[0].index: want one above 0 with agent_id, got 0"},
		{"index 0 later", []*pb.RelayedRequest{helloOf(5, 1), requestOf(0, 1, edgetest.Goodbye())}, "requests[1].index: want one above 0, got 0"},
		{"index again", []*pb.RelayedRequest{helloOf(5, 1), helloOf(5, 2)}, "requests[1].index: want one above 5 with agent_id, got 5"},
		{"index below", []*pb.RelayedRequest{helloOf(5, 1), helloOf(4, 2)}, "requests[1].index: want one above 5 with agent_id, got 4"},
		{"index above", []*pb.RelayedRequest{helloOf(5, 1), requestOf(6, 1, edgetest.Goodbye())}, "requests[1].agent_id: want it with the hello of session 6, which is not open"},
		{"no hello", []*pb.RelayedRequest{stats(1)}, "requests[0].agent_id: want it with the hello of session 5, which is not open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stream := relayRaw(t, s)
			sendAll(t, stream, c.send...)
			edgetest.RequireCode(t, streamError(stream), codes.InvalidArgument, c.text)
		})
	}

	stream := relayRaw(t, s)
	sendAll(t, stream, helloOf(5, 1), stats(1), end, stats(2))
	// The session may have ended before the last request is looked at.
	require.Contains(t, []string{"request: want none after end", ""}, endOf(t, stream, 5).GetMessage())
	sendAll(t, stream, stats(3), end) // which its caller did not know to have ended
	sendAll(t, stream, &pb.RelayedRequest{Index: 6, AgentId: []byte("short"), Request: edgetest.Hello(edgetest.Session{})})
	got := endOf(t, stream, 6)
	require.Equal(t, "agent_id: want 16 bytes, got 5", got.GetMessage())
	require.EqualValues(t, codes.InvalidArgument, got.GetCode())
	require.Equal(t, 1.0, s.Counter("agentstatsd_relay_refused_total", "agent_id"))
	sendAll(t, stream, helloOf(7, 9))
	got = endOf(t, stream, 7)
	require.Equal(t, "agent_id: no such agent is registered", got.GetMessage())
	require.EqualValues(t, codes.NotFound, got.GetCode())
	sendAll(t, stream, helloOf(8, 2))
	require.NoError(t, stream.CloseSend())
	require.Zero(t, endOf(t, stream, 8).GetCode(), "what the half-close ended")
	require.ErrorContains(t, streamError(stream), "EOF")

	stream = relayRaw(t, s)
	malformed := &pb.RelayAgentsRequest{}
	malformed.ProtoReflect().SetUnknown([]byte{1<<3 | 2, 5, 1})
	require.NoError(t, stream.Send(malformed))
	edgetest.RequireCode(t, streamError(stream), codes.InvalidArgument, "requests (field 1): want a well-formed agentstats.v1.RelayAgentsRequest: it is cut off")
	require.Eventually(t, func() bool {
		return s.Counter("agentstatsd_relay_streams", "")+s.Counter("agentstatsd_relayed_sessions", "") == 0
	}, 10*time.Second, time.Millisecond)
}

// What is wrong with the message of one agent, or with its size, ends that session only.
func TestRelayedMessageIsRefusedAlone(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxAgentMessageBytes: 2000}})
	s.Register(1, 2, 3)
	stream := relayRaw(t, s)
	cut := &pb.ConnectRequest{}
	cut.ProtoReflect().SetUnknown([]byte{0x1a, 0x05, 0x01})
	sendAll(t, stream, helloOf(1, 1), helloOf(2, 2), helloOf(3, 3),
		requestOf(1, 1, edgetest.Metadata("k", strings.Repeat("x", 2000))),
		&pb.RelayedRequest{Index: 2, Request: cut},
		requestOf(3, 1, edgetest.Stats(edgetest.Gauge("custom", 1))), &pb.RelayedRequest{Index: 3, End: true})
	ends := make(map[uint32]*pb.RelayedEnd)
	for len(ends) < 3 {
		m, err := stream.Recv()
		require.NoError(t, err)
		for _, r := range m.GetResponses() {
			if r.GetEnd() != nil {
				ends[r.GetIndex()] = r.GetEnd()
			}
		}
	}
	require.Equal(t, "message: want at most 2000 bytes (--max-agent-message-bytes), got 2017", ends[1].GetMessage())
	require.EqualValues(t, codes.ResourceExhausted, ends[1].GetCode())
	require.Equal(t, "stats (field 3): want a well-formed agentstats.v1.ConnectRequest: it is cut off", ends[2].GetMessage())
	require.Zero(t, ends[3].GetCode(), "%v", ends[3])
	require.Len(t, s.Exposition("custom"), 1)
}

// An agent that sends faster than it may holds nobody up. Beyond its credit its session
// ends.
func TestRelayedFlood(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{MessagesBurst: 25, MessagesPerSecond: 1}})
		s.Register(1, 2)
		stream := relayRaw(t, s)
		sendAll(t, stream, helloOf(1, 1), helloOf(2, 2))
		synctest.Wait()
		began := time.Now()
		var flood []*pb.RelayedRequest
		for n := range int64(60) {
			flood = append(flood, requestOf(1, 1+n, edgetest.Stats(edgetest.Gauge("flood", 1))))
		}
		flood = append(flood, requestOf(2, 1, edgetest.Stats(edgetest.Gauge("custom", 1))))
		sendAll(t, stream, flood...)
		acked, ended := false, (*pb.RelayedEnd)(nil)
		for !acked || ended == nil {
			m, err := stream.Recv()
			require.NoError(t, err)
			for _, r := range m.GetResponses() {
				acked = acked || r.GetIndex() == 2 && r.GetResponse().GetAck().GetReceivedSequence() == 1
				if r.GetEnd() != nil {
					require.EqualValues(t, 1, r.GetIndex())
					ended = r.GetEnd()
				}
			}
		}
		require.Equal(t, "want at most 16 requests of a session without credit, together of at most 1048576 bytes (--max-agent-message-bytes)", ended.GetMessage())
		require.EqualValues(t, codes.ResourceExhausted, ended.GetCode())
		require.Positive(t, ended.GetRetryDelay().AsDuration())
		require.LessOrEqual(t, time.Since(began), 10*time.Second)
		require.Equal(t, 1.0, s.Counter("agentstatsd_relay_refused_total", "credit"))
		synctest.Wait()
		require.Equal(t, 1.0, s.Counter("agentstatsd_relayed_sessions", ""))
	})
}

// Requests that are handled slowly take no more memory than a stream may have. The
// session with the most of them ends, the others go on. None is beyond its credit.
func TestRelayedRequestsAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const agents, each = 8, 3
		s := edgetest.Start(t, edgetest.Settings{
			Server: grpcserver.Options{MaxMessageBytes: 128 << 10, MaxAgentMessageBytes: 64 << 10},
			// After the first of its requests an agent is not read for some seconds.
			Fleet: fleet.Options{BytesBurst: 10 << 10, BytesPerSecond: 3 << 10},
		})
		s.Register(1, 2, 3, 4, 5, 6, 7, 8, 9)
		stream := relayRaw(t, s)
		for n := range agents {
			sendAll(t, stream, helloOf(uint32(1+n), 1+n))
		}
		sendAll(t, stream, helloOf(9, 9))
		stats := edgetest.Stats(edgetest.Gauge(strings.Repeat("x", 20<<10), 1))
		go func() {
			for sequence := range int64(each) {
				for n := range agents {
					if stream.Send(&pb.RelayAgentsRequest{Requests: []*pb.RelayedRequest{requestOf(uint32(1+n), 1+sequence, stats)}}) != nil {
						return
					}
				}
			}
			_ = stream.Send(&pb.RelayAgentsRequest{Requests: []*pb.RelayedRequest{requestOf(9, 1, edgetest.Stats(edgetest.Gauge("custom", 1)))}})
		}()
		ends := 0
		for acked := false; !acked; {
			m, err := stream.Recv()
			require.NoError(t, err)
			for _, r := range m.GetResponses() {
				acked = acked || r.GetIndex() == 9 && r.GetResponse().GetAck() != nil
				if r.GetEnd() != nil {
					require.Regexp(t, "^want requests handled within 1s while the queue of the stream is full, [0-9]+ bytes were not$", r.GetEnd().GetMessage())
					require.EqualValues(t, codes.ResourceExhausted, r.GetEnd().GetCode())
					ends++
				}
			}
		}
		require.Positive(t, ends)
		require.Less(t, ends, agents/2)
		require.Equal(t, float64(ends), s.Counter("agentstatsd_relay_refused_total", "slow"))
		require.Zero(t, s.Counter("agentstatsd_relay_refused_total", "credit"))
		require.Len(t, s.Exposition("custom"), 1)
	})
}

// Requests of many agents in one message are answered in few, whose sizes are bounded.
func TestRelayAnswersTogether(t *testing.T) {
	const agents = 500
	s := edgetest.Start(t, edgetest.Settings{})
	var numbers []int
	requests := &pb.RelayAgentsRequest{}
	for n := range agents {
		numbers = append(numbers, n+1)
		requests.Requests = append(requests.Requests, helloOf(uint32(n+1), n+1),
			requestOf(uint32(n+1), 1, &pb.ConnectRequest{Stats: edgetest.Gauge("custom", float64(n)), AckNow: true}))
	}
	s.Register(numbers...)
	stream := relayRaw(t, s)
	require.NoError(t, stream.Send(requests))
	messages, credit, acks := 0, 0, make(map[uint32]bool)
	for len(acks) < agents {
		m, err := stream.Recv()
		require.NoError(t, err)
		messages++
		require.Less(t, proto.Size(m), 70<<10)
		for _, r := range m.GetResponses() {
			credit += int(r.GetCredit())
			if r.GetResponse().GetAck().GetReceivedSequence() == 1 {
				acks[r.GetIndex()] = true
			}
		}
	}
	require.Less(t, messages, agents, "of %d responses", 2*agents)
	require.Equal(t, 2*agents, credit)
	require.Len(t, s.Exposition("custom"), agents)
	require.Equal(t, float64(agents), s.Counter("agentstatsd_relayed_sessions", ""))
	require.Equal(t, 1.0, s.Counter("agentstatsd_relay_streams", ""))
}

// Acks of many agents that report at any time share messages, and none is late.
func TestRelayedAcksAreGathered(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const agents, ackDelay = 600, 5 * time.Second
		s := edgetest.Start(t, edgetest.Settings{Agents: agentapi.Options{AckDelay: ackDelay}})
		var numbers []int
		for n := range agents {
			numbers = append(numbers, n+1)
		}
		s.Register(numbers...)
		stream := relayRaw(t, s)
		for n := range agents {
			sendAll(t, stream, helloOf(uint32(n+1), n+1))
		}
		var mu sync.Mutex
		messages, acks, late := 0, 0, time.Duration(0)
		sent := make(map[uint32]time.Time) // guarded by mu, as the counts are
		go func() {
			for {
				m, err := stream.Recv()
				if err != nil {
					return
				}
				mu.Lock()
				messages++
				for _, r := range m.GetResponses() {
					if r.GetResponse().GetAck() != nil {
						acks++
						late = max(late, time.Since(sent[r.GetIndex()]))
					}
				}
				mu.Unlock()
			}
		}()
		time.Sleep(time.Minute)
		mu.Lock()
		messages, acks = 0, 0
		mu.Unlock()
		for sequence := range int64(2) { // each agent reports each half a minute
			for n := range agents {
				mu.Lock()
				sent[uint32(n+1)] = time.Now()
				mu.Unlock()
				sendAll(t, stream, requestOf(uint32(n+1), 1+sequence, edgetest.Stats(edgetest.Gauge("custom", 1))))
				time.Sleep(30 * time.Second / agents)
			}
		}
		time.Sleep(ackDelay)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, 2*agents, acks)
		require.LessOrEqual(t, late, ackDelay)
		require.LessOrEqual(t, messages, 10*65, "in 65 s")
		t.Logf("%d acks in %d messages, after %v at most", acks, messages, late)
	})
}

// Idle agents that are relayed have no goroutine.
func TestRelayedAgentsHaveNoGoroutine(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		var numbers []int
		for n := range 50 {
			numbers = append(numbers, n+1)
		}
		s.Register(numbers...)
		synctest.Wait()
		before := ownGoroutines()
		relay := s.OpenRelay(s.AsCoderd())
		for _, n := range numbers {
			c := relay.Connect(t, edgetest.Session{Agent: n})
			c.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
			c.RequireDurable(1)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 2, ownGoroutines()-before, "that reads and that writes")
	})
}

func TestRelayLimits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Agents: agentapi.Options{MaxRelayStreams: 1, MaxRelayedSessions: 2}})
		s.Register(1, 2, 3)
		stream := relayRaw(t, s)
		sendAll(t, stream, helloOf(1, 1), helloOf(2, 2), helloOf(3, 3))
		end := endOf(t, stream, 3)
		require.Equal(t, "want at most 2 sessions on a stream that relays (--max-relayed-sessions)", end.GetMessage())
		require.Equal(t, 10*time.Second, end.GetRetryDelay().AsDuration())
		require.Equal(t, 1.0, s.Counter("agentstatsd_relay_refused_total", "sessions"))
		sendAll(t, stream, &pb.RelayedRequest{Index: 1, End: true})
		require.Zero(t, endOf(t, stream, 1).GetCode())
		sendAll(t, stream, helloOf(4, 3), &pb.RelayedRequest{Index: 4, End: true})
		require.Zero(t, endOf(t, stream, 4).GetCode(), "there is a place again")

		other := relayRaw(t, s)
		edgetest.RequireCode(t, streamError(other), codes.ResourceExhausted, "want at most 1 streams that relay at once (--max-relay-streams)")
		require.Equal(t, 1.0, s.Counter("agentstatsd_relay_refused_total", "streams"))
		opts := s.AgentService.Options()
		opts.MaxRelayStreams = 2
		require.NoError(t, s.AgentService.Reconfigure(opts))
		other = relayRaw(t, s)
		require.NoError(t, other.CloseSend())
		require.ErrorContains(t, streamError(other), "EOF")
		require.NoError(t, stream.CloseSend())
		require.ErrorContains(t, streamError(stream), "EOF")
	})
}

// The newest session of an agent is the one that lives, however each is carried.
func TestRelayedAndOwnSessionsTakeOver(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1, 2)
	relay := s.OpenRelay(s.AsCoderd())
	relayed, other := relay.Connect(t, edgetest.Session{Agent: 1}), relay.Connect(t, edgetest.Session{Agent: 2, Instance: 2})
	relayed.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
	relayed.RequireDurable(1)
	own := s.Connect(edgetest.Session{Agent: 1, Number: 2})
	relayed.RequireEnd(codes.Aborted, "superseded by a newer session")
	require.Equal(t, int64(1), own.Settings.GetResume().GetReceivedSequence())
	again := s.OpenRelay(s.AsCoderd()).Connect(t, edgetest.Session{Agent: 1, Number: 3})
	own.RequireEnd(codes.Aborted, "superseded by a newer session")
	twice := relay.Connect(t, edgetest.Session{Agent: 1, Number: 4})
	again.RequireEnd(codes.Aborted, "superseded by a newer session")
	twice.SendNext(edgetest.Stats(edgetest.Gauge("custom", 2)))
	twice.RequireDurable(2)
	other.SendNext(edgetest.Stats(edgetest.Gauge("custom", 3)))
	other.RequireDurable(1)
	require.Len(t, s.Exposition("custom"), 2)
}

// A drain asks each agent, one after another. New sessions are sent elsewhere, and the
// stream ends when the last one has.
func TestRelayDrain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const agents = 40
		s := edgetest.Start(t, edgetest.Settings{})
		var numbers []int
		for n := range agents + 1 {
			numbers = append(numbers, n+1)
		}
		s.Register(numbers...)
		relay := s.OpenRelay(s.AsCoderd())
		asked := make(chan time.Time, agents)
		for n := range agents {
			c := relay.Connect(t, edgetest.Session{Agent: n + 1})
			go func() {
				m, err := c.Recv()
				if err != nil || m.GetReconnect().GetReason() != "draining" {
					t.Errorf("want a please-reconnect, got %v, %v", m, err)
				}
				asked <- time.Now()
				if n > 0 {
					_ = c.CloseSend()
				}
			}()
		}
		synctest.Wait()
		began := time.Now()
		go s.Stop()
		late := false
		for n := range agents {
			at := <-asked
			if n == agents/2 {
				late = true
				c := relay.Open(t.Context(), t, agents+1)
				require.NoError(t, c.Send(edgetest.Hello(edgetest.Session{})))
				require.Equal(t, "draining", c.Next().GetReconnect().GetReason())
				c.RequireEnd(codes.Unavailable, "the service is stopping; connect again elsewhere or later")
				require.Greater(t, at.Sub(began), time.Second)
			}
		}
		require.True(t, late)
		edgetest.RequireCode(t, relay.AwaitEnd(), codes.Unavailable, "the service is stopping; connect again elsewhere or later")
		require.Equal(t, 10*time.Second, time.Since(began), "one did not go")
		s.Stop()
		require.Equal(t, float64(agents), s.Counter("agentstatsd_sessions_ended_total", "drain"))
	})
}

// A stream that relays and is not read ends; what waits for it is bounded.
func TestRelayThatDoesNotRead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{
			Fleet: fleet.Options{RefusedBurst: 1 << 30, RefusedPerSecond: 1},
			Dial:  []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(1 << 20)},
		})
		s.Register(1, 2, 3)
		stream := relayRaw(t, s)
		bad := &pb.Stats{}
		for range 16 {
			bad.Metrics = append(bad.Metrics, &pb.Stats_Metric{Name: strings.Repeat("bad name ", 20)})
		}
		sendAll(t, stream, helloOf(1, 1), helloOf(2, 2))
		go func() {
			for sequence := int64(1); ; sequence++ {
				for index := range uint32(2) {
					if stream.Send(&pb.RelayAgentsRequest{Requests: []*pb.RelayedRequest{requestOf(1+index, sequence, edgetest.Stats(bad))}}) != nil {
						return
					}
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
		time.Sleep(40 * time.Second)
		edgetest.RequireCode(t, streamError(stream), codes.ResourceExhausted, "responses: want them read within 30s (--grpc-send-timeout), they were not")
		require.Equal(t, 1.0, s.Counter("agentstatsd_grpc_limited_total", "slow_reader"))
		synctest.Wait()
		require.Zero(t, s.Counter("agentstatsd_relayed_sessions", ""))
		s.Connect(edgetest.Session{Agent: 3})
	})
}

// The credential of coderd is needed: see also the tests of grpcserver for all methods.
func TestRelayIsForCoderd(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	for token, code := range map[string]codes.Code{edgetest.Token(1): codes.PermissionDenied, "x": codes.Unauthenticated} {
		stream, err := s.Agents().RelayAgents(edgetest.As(t.Context(), token))
		require.NoError(t, err)
		require.Equal(t, code, status.Code(streamError(stream)), fmt.Sprint(token))
	}
}
