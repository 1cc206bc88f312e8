package agentapi_test

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// TestSession goes the way of an agent from hello to goodbye.
func TestSession(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{fleet: fleet.Options{SessionAge: time.Hour}})
		s.register(1)
		c := s.connect(1, 7, 1)
		want := &pb.Settings{
			ReportInterval: durationpb.New(30 * time.Second),
			SessionAge:     durationpb.New(time.Hour),
			Limits: &pb.Limits{
				MessageBytes: 1 << 20, Series: 1000, MetadataKeys: 128,
				MetadataKeyBytes: 1024, MetadataReportKeyBytes: 6144, MetadataValueBytes: 2048, MetadataErrorBytes: 2048,
			},
			Resume: &pb.Resume{},
			Epoch:  time.Now().UnixNano(),
		}
		require.True(t, proto.Equal(want, c.settings), "got %v", c.settings)

		c.send(stats(&pb.Stats{
			RxBytes: 100, ConnectionCount: 2, ConnectionMedianLatencyMs: 20,
			SessionCounts: map[string]int64{"cursor": 1, "vscode": 2, "ssh": 0},
			Metrics:       []*pb.Stats_Metric{{Name: "custom", Type: pb.Stats_Metric_TYPE_GAUGE, Value: 3, Labels: []*pb.Stats_Metric_Label{{Name: "k", Value: "v"}}}},
		}))
		c.requireAck(1, 1)
		labels := `{agent_name="main",username="ada",workspace_name="ws1"}`
		require.Equal(t, []string{"coderd_agentstats_rx_bytes" + labels + " 100"}, s.exposition("rx_bytes"))
		require.Equal(t, []string{"coderd_agentstats_session_count_vscode" + labels + " 3"}, s.exposition("session_count_vscode"))
		require.Len(t, s.exposition(`k="v"`), 1)

		c.send(meta("cpu", "1", "mem", "2"))
		c.requireAck(2, 1)
		require.Empty(t, s.stored(1))
		c.requireAck(2, 2)
		require.Equal(t, []string{"cpu=1", "mem=2"}, s.stored(1))

		c.send(lifecycle(pb.Lifecycle_STATE_READY))
		c.requireAck(3, 2)
		c.requireAck(3, 3)
		c.send(&pb.ConnectRequest{Message: &pb.ConnectRequest_AppHealth{AppHealth: &pb.AppHealthReport{
			Updates: []*pb.AppHealthUpdate{{Id: bid(50_001), Health: pb.AppHealth_APP_HEALTH_HEALTHY}},
		}}})
		c.send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Network{Network: &pb.Network{
			NodeId: 9, PreferredRegionId: 1, Regions: []*pb.Network_Region{{Id: 1, Latency: durationpb.New(time.Millisecond)}, {Id: 2, Name: "Sydney"}},
		}}})
		c.requireAck(5, 5)
		states, _, err := s.store.States(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, states, 1)
		require.Equal(t, agent.LifecycleReady, states[0].Lifecycle.State)
		require.Equal(t, agent.AppHealthHealthy, states[0].AppHealth[nid(50_001)])
		require.Equal(t, agent.Network{NodeID: 9, PreferredRegion: 1, Regions: []agent.Region{
			{ID: 1, Name: "Unnamed 1", Latency: time.Millisecond}, {ID: 2, Name: "Sydney", Latency: -1},
		}}, states[0].Network)

		c.send(meta("cpu", "5"))
		c.send(goodbye())
		require.NoError(t, c.CloseSend())
		received, durable := c.ack()
		for received < 7 {
			received, durable = c.ack()
		}
		require.Equal(t, int64(5), durable)
		require.Empty(t, s.exposition("coderd_agentstats_"), "at once, not when the last ack is sent")
		c.requireAck(7, 7)
		c.requireEnd(codes.OK, "")
		require.Equal(t, []string{"cpu=5", "mem=2"}, s.stored(1))
		require.Equal(t, 1.0, s.counter("agentstatsd_sessions_total", "goodbye"))
		require.Equal(t, 2.0, s.counter("agentstatsd_agent_requests_total", "metadata"))
	})
}

func TestViolations(t *testing.T) {
	s := start(t, settings{
		server: grpcserver.Options{MaxAgentMessageBytes: 1000},
		fleet:  fleet.Options{RefusedBurst: 3, RefusedPerSecond: 1},
	})
	with := func(req *pb.ConnectRequest, change func(*pb.ConnectRequest)) *pb.ConnectRequest {
		change(req)
		return req
	}
	good := hello(1, 1)
	seq := func(n int64, req *pb.ConnectRequest) *pb.ConnectRequest {
		req.Sequence = n
		return req
	}
	for i, c := range []struct {
		name string
		send []*pb.ConnectRequest
		code codes.Code
		text string
	}{
		{"nothing", nil, codes.InvalidArgument, "hello: want it as the first message, got none"},
		{"no hello", []*pb.ConnectRequest{seq(1, stats(&pb.Stats{}))}, codes.InvalidArgument, "hello: want it as the first message"},
		{"empty", []*pb.ConnectRequest{{}}, codes.InvalidArgument, "hello: want it as the first message"},
		{"protocol version", []*pb.ConnectRequest{with(hello(1, 1), func(r *pb.ConnectRequest) { r.GetHello().ProtocolVersion = 2 })}, codes.FailedPrecondition, "hello.protocol_version: want 1, got 2"},
		{"instance", []*pb.ConnectRequest{with(hello(1, 1), func(r *pb.ConnectRequest) { r.GetHello().InstanceId = []byte("short") })}, codes.InvalidArgument, "hello.instance_id: want 16 bytes, got 5"},
		{"session", []*pb.ConnectRequest{hello(1, -1)}, codes.InvalidArgument, "hello.session: want at least 0, got -1"},
		{"epoch", []*pb.ConnectRequest{{Message: &pb.ConnectRequest_Hello{Hello: &pb.Hello{InstanceId: make([]byte, 16), ProtocolVersion: 1, Epoch: -1}}}}, codes.InvalidArgument, "hello.epoch: want at least 0, got -1"},
		{"sequence of hello", []*pb.ConnectRequest{seq(4, hello(1, 1))}, codes.InvalidArgument, "sequence: want 0 with hello, got 4"},
		{"second hello", []*pb.ConnectRequest{good, hello(1, 2)}, codes.InvalidArgument, "hello: want it as the first message only"},
		{"no message", []*pb.ConnectRequest{good, {Sequence: 1}}, codes.InvalidArgument, "message: want one of stats, metadata, lifecycle, app_health, network and goodbye, got none"},
		{"zero sequence", []*pb.ConnectRequest{good, stats(&pb.Stats{})}, codes.InvalidArgument, "sequence: want at least 1, got 0"},
		{"negative sequence", []*pb.ConnectRequest{good, seq(-1, stats(&pb.Stats{}))}, codes.InvalidArgument, "sequence: want at least 1, got -1"},
		{"after goodbye", []*pb.ConnectRequest{good, seq(1, meta("k", "v")), seq(2, goodbye()), seq(3, goodbye())}, codes.InvalidArgument, "message: want none after goodbye"},
		{"too large", []*pb.ConnectRequest{good, seq(1, meta("k", strings.Repeat("x", 1000)))}, codes.ResourceExhausted, "message: want at most 1000 bytes (--max-agent-message-bytes), got 1017"},
		{"hello too large", []*pb.ConnectRequest{seq(1, meta("k", strings.Repeat("x", 1000)))}, codes.ResourceExhausted, "hello: want at most 1000 bytes (--max-agent-message-bytes), got 1017"},
		{"too much refused", []*pb.ConnectRequest{good, seq(1, meta("", "", "", "", "", "")), seq(2, meta("", "", "", ""))}, codes.ResourceExhausted, "refused items of the agent: want at most 3 at once (--agent-refused-burst) and 1 a second after that (--agent-refused-rate), got 5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.register(i)
			stream := s.open(as(t.Context(), token(i)))
			stream.t = t
			for _, req := range c.send {
				require.NoError(t, stream.Send(req))
			}
			require.NoError(t, stream.CloseSend())
			stream.requireEnd(c.code, c.text)
		})
	}
}

func TestMalformedMessage(t *testing.T) {
	s := start(t, settings{})
	s.register(1)
	c := s.connect(1, 1, 1)
	// The bytes of field 3 (stats) end early.
	bad := &pb.ConnectRequest{}
	bad.ProtoReflect().SetUnknown([]byte{0x1a, 0x05, 0x01})
	require.NoError(t, c.Send(bad))
	c.requireEnd(codes.InvalidArgument, "stats (field 3): want a well-formed agentstats.v1.ConnectRequest: it is cut off")
}

func TestHelloTimeout(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		start := time.Now()
		s.open(as(t.Context(), token(1))).requireEnd(codes.InvalidArgument, "hello: want it within 10s (--grpc-first-message-timeout)")
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestRefusalsByName(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		r := registration(1)
		r.MetadataKeys = []string{"cpu"}
		_, err := s.coderd().RegisterAgents(s.asCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{r}})
		require.NoError(t, err)
		c := s.connect(1, 1, 1)

		refused := func() *pb.Refusal {
			t.Helper()
			m := c.recv()
			require.NotNil(t, m.GetRefusal(), "got %v", m)
			return m.GetRefusal()
		}
		c.send(stats(&pb.Stats{Metrics: []*pb.Stats_Metric{
			{Name: "good", Value: 1}, {Name: "bad name", Value: 1}, {Name: "worse name", Value: 2},
		}}))
		got := refused()
		require.Equal(t, int64(1), got.GetSequence())
		require.Equal(t, pb.RefusalCode_REFUSAL_CODE_INVALID, got.GetCode())
		require.Equal(t, "invalid_name", got.GetReason())
		require.Equal(t, []string{"bad name", "worse name"}, got.GetNames())
		require.Equal(t, int64(2), got.GetCount())
		c.requireAck(1, 1)
		require.Len(t, s.exposition("good"), 1)

		c.send(meta("cpu", "1", "mem", "2"))
		got = refused()
		require.Equal(t, "undeclared_key", got.GetReason())
		require.Equal(t, pb.RefusalCode_REFUSAL_CODE_NOT_ALLOWED, got.GetCode())
		require.Equal(t, []string{"mem"}, got.GetNames())
		c.requireAck(2, 2)
		require.Equal(t, []string{"cpu=1"}, s.stored(1))

		c.send(lifecycle(-999))
		got = refused()
		require.Equal(t, "lifecycle.state: unknown lifecycle state -999", got.GetMessage())
		require.Equal(t, "unknown_state", got.GetReason())
		c.requireAck(3, 3)

		c.send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Lifecycle{Lifecycle: &pb.Lifecycle{
			State: pb.Lifecycle_STATE_READY, ChangedAt: &timestamppb.Timestamp{Seconds: -5},
		}}})
		require.Equal(t, "lifecycle.changed_at: want a time from 1970 to 2262, got -5 s and 0 ns since 1970", refused().GetMessage())
		c.requireAck(4, 4)

		healthy := pb.AppHealth_APP_HEALTH_HEALTHY
		c.send(&pb.ConnectRequest{Message: &pb.ConnectRequest_AppHealth{AppHealth: &pb.AppHealthReport{Updates: []*pb.AppHealthUpdate{
			{Id: []byte("x"), Health: healthy}, {Id: bid(50_001)}, {Id: bid(50_001), Health: healthy}, {Id: bid(50_001), Health: healthy}, {Id: bid(9), Health: healthy},
		}}}})
		require.Equal(t, "app_health.updates[0].id: want 16 bytes, got 1", refused().GetMessage())
		require.Equal(t, "app_health.updates[1].health: unknown health 0", refused().GetMessage())
		require.Equal(t, "app_health.updates[3].id: want each app once, got "+nid(50_001).String()+" again", refused().GetMessage())
		require.Equal(t, []string{nid(9).String()}, refused().GetNames())
		c.requireAck(5, 4)
		c.requireAck(5, 5)

		for text, n := range map[string]*pb.Network{
			"network.preferred_region_id: want at least 0, got -1":                            {PreferredRegionId: -1},
			"network.regions: want at most 128, got 129":                                      {Regions: make([]*pb.Network_Region, 129)},
			"network.regions[0].id: want at least 1, got 0":                                   {Regions: []*pb.Network_Region{{}}},
			"network.regions[1].id: want each region once, got 3 again":                       {Regions: []*pb.Network_Region{{Id: 3}, {Id: 3}}},
			"network.regions[0].name: want at most 128 bytes, got 129":                        {Regions: []*pb.Network_Region{{Id: 3, Name: strings.Repeat("x", 129)}}},
			"network.regions[0].name: want no NUL in it":                                      {Regions: []*pb.Network_Region{{Id: 3, Name: "a\x00"}}},
			"network.regions[0].latency: want 0 s to 86400 s, got 0 s and -1 ns":              {Regions: []*pb.Network_Region{{Id: 3, Latency: durationpb.New(-1)}}},
			"network.regions[0].latency: want 0 s to 86400 s, got 86400 s and 1 ns":           {Regions: []*pb.Network_Region{{Id: 3, Latency: durationpb.New(24*time.Hour + 1)}}},
			"network.regions[0].latency: want 0 s to 86400 s, got 999999999999999 s and 0 ns": {Regions: []*pb.Network_Region{{Id: 3, Latency: &durationpb.Duration{Seconds: 999999999999999}}}},
		} {
			for i := range n.Regions {
				if n.Regions[i] == nil {
					n.Regions[i] = &pb.Network_Region{Id: int64(i + 1)}
				}
			}
			c.send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Network{Network: n}})
			require.Equal(t, text, refused().GetMessage())
			c.requireAck(c.sequence, c.sequence)
		}
	})
}

func TestGarbageIsSentAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{fleet: fleet.Options{RefusedBurst: 10, RefusedPerSecond: 1}})
		s.register(1, 2)
		c := s.connect(1, 1, 1)
		c.send(stats(&pb.Stats{Metrics: make([]*pb.Stats_Metric, 0)}))
		bad := &pb.Stats{}
		for range 15 {
			bad.Metrics = append(bad.Metrics, &pb.Stats_Metric{Name: "bad name"})
		}
		c.send(stats(bad))
		var err error
		refused := 0
		for err == nil {
			var m *pb.ConnectResponse
			m, err = c.Recv()
			if m.GetRefusal() != nil {
				refused++
			}
		}
		require.Equal(t, 1, refused, "it is told why")
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.InDelta(t, 5, retryDelay(t, err).Seconds(), 0.5)

		// Whoever comes back before is held for a moment, then told how long is left.
		began := time.Now()
		c = s.open(as(t.Context(), token(1)))
		_, err = c.Recv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Equal(t, time.Second, time.Since(began))
		require.InDelta(t, 4, retryDelay(t, err).Seconds(), 0.5)
		s.connect(2, 1, 1) // nobody else is
		time.Sleep(retryDelay(t, err) + time.Millisecond)

		c = s.connect(1, 1, 2)
		c.send(stats(gauge("bad name", 1)))
		c.requireEnd(codes.ResourceExhausted, "refused items of the agent: want at most 10 at once (--agent-refused-burst) and 1 a second after that (--agent-refused-rate), got 11")
		require.Equal(t, 2.0, s.counter("agentstatsd_sessions_total", "refused"))
		require.Equal(t, 2.0, s.counter("agentstatsd_agents_limited_total", "refused"))
		require.Equal(t, 1.0, s.counter("agentstatsd_sessions_refused_total", ""))
	})
}

func retryDelay(t *testing.T, err error) time.Duration {
	t.Helper()
	require.NotEmpty(t, status.Convert(err).Details())
	retry, ok := status.Convert(err).Details()[0].(*errdetails.RetryInfo)
	require.True(t, ok)
	return retry.GetRetryDelay().AsDuration()
}

// Who breaks the contract over and over is away, too.
func TestBrokenMessagesAreCounted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		for session := int64(1); ; session++ {
			require.Less(t, session, int64(13))
			c := s.open(as(t.Context(), token(1)))
			if session%2 == 0 {
				require.NoError(t, c.Send(hello(1, session)))
			}
			_ = c.Send(&pb.ConnectRequest{Sequence: -1})
			var err error
			for err == nil {
				_, err = c.Recv()
			}
			if status.Code(err) == codes.ResourceExhausted {
				break
			}
			require.Equal(t, codes.InvalidArgument, status.Code(err))
		}
	})
}

// An agent that floods is not read faster than its rate, by which its own flow
// control stops it, and ended after a while.
func TestFloodIsSlowed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{fleet: fleet.Options{MessagesPerSecond: 10, MessagesBurst: 100}})
		s.register(1, 2)
		flood, good := s.connect(1, 1, 1), s.connect(2, 1, 1)
		began := time.Now()
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := flood.Recv(); err != nil {
					ended <- err
					return
				}
			}
		}()
		go func() {
			req := stats(gauge("custom", 1))
			for seq := int64(1); ; seq++ {
				req.Sequence = seq
				if flood.Send(req) != nil {
					return
				}
			}
		}()
		for i := range 5 {
			good.send(stats(gauge("custom", float64(i))))
			asked := time.Now()
			good.requireAck(int64(i+1), int64(i+1))
			require.LessOrEqual(t, time.Since(asked), 10*time.Millisecond)
			time.Sleep(time.Second)
		}
		err := <-ended
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Equal(t, 30*time.Second, retryDelay(t, err))
		took := time.Since(began).Seconds()
		require.InDelta(t, 10, took, 2)
		require.InDelta(t, 100+10*took, s.counter("agentstatsd_agent_requests_total", "stats")-5, 30, "the rest was never read")
		require.Equal(t, 1.0, s.counter("agentstatsd_agents_limited_total", "message_rate"))
		require.NotZero(t, s.counter("agentstatsd_agent_messages_delayed_total", "message_rate"))
	})
}

// A message of too many elements is refused before it takes the memory.
func TestElementsAreCounted(t *testing.T) {
	s := start(t, settings{})
	s.register(1)
	c := s.connect(1, 1, 1)
	st := &pb.Stats{}
	for range 200_000 {
		st.Metrics = append(st.Metrics, &pb.Stats_Metric{})
	}
	c.send(stats(st))
	c.requireEnd(codes.ResourceExhausted,
		"message: want at most 8388608 bytes in memory once decoded (8 times --max-agent-message-bytes), got 400006 encoded and at least 8388720 decoded: it has too many elements")
}

func TestTakeoverAndResume(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		first := s.connect(1, 1, 1)
		first.send(stats(&pb.Stats{RxBytes: 10}))
		first.requireAck(1, 1)
		first.send(meta("k", "v"))
		first.requireAck(2, 1)

		second := s.connect(1, 1, 2)
		require.Equal(t, int64(2), second.settings.GetResume().GetReceivedSequence())
		require.Equal(t, int64(1), second.settings.GetResume().GetDurableSequence())
		first.requireEnd(codes.Aborted, "superseded by a newer session")
		second.requireAck(2, 2)

		require.NoError(t, second.Send(&pb.ConnectRequest{Sequence: 1, Message: stats(&pb.Stats{RxBytes: 10}).Message}))
		second.requireAck(2, 2)
		require.Contains(t, s.exposition("rx_bytes")[0], "} 10", "a duplicate is ignored")

		require.NoError(t, second.Send(&pb.ConnectRequest{Sequence: 100, Message: stats(&pb.Stats{RxBytes: 5}).Message}))
		second.requireAck(100, 100)
		require.Contains(t, s.exposition("rx_bytes")[0], "} 15")

		other := s.connect(1, 2, 1)
		require.Zero(t, other.settings.GetResume().GetReceivedSequence(), "of another instance nothing is known")
		second.requireEnd(codes.Aborted, "superseded by a newer session")
	})
}

func TestStreamsOfAgentsThatGo(t *testing.T) {
	s := start(t, settings{})
	s.register(1, 2, 3)
	deregistered, superseded, revoked := s.connect(1, 1, 1), s.connect(2, 2, 1), s.connect(3, 3, 1)
	for _, c := range []*stream{deregistered, superseded, revoked} {
		c.send(stats(gauge("custom", 1)))
		c.requireAck(1, 1)
	}
	require.Len(t, s.exposition("custom"), 3)

	_, err := s.coderd().DeregisterAgents(s.asCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{bid(1)}})
	require.NoError(t, err)
	deregistered.requireEnd(codes.Unauthenticated, "the agent was deregistered")
	s.open(as(t.Context(), token(1))).requireEnd(codes.Unauthenticated, "unknown token")

	changed := registration(3)
	changed.TokenSha256 = hashOf("another")
	resp, err := s.coderd().RegisterAgents(s.asCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{rebuilt(registration(2), 12), changed}})
	require.NoError(t, err)
	require.Equal(t, [][]byte{bid(2)}, resp.GetSupersededIds())
	superseded.requireEnd(codes.Unauthenticated, "the agent was superseded by that of a newer build")
	revoked.requireEnd(codes.Unauthenticated, "the token was revoked")
	require.Empty(t, s.exposition("custom"))

	s.connect(12, 1, 1)
	c := s.open(as(t.Context(), "another")).greet(3, 2)
	require.Equal(t, int64(1), c.settings.GetResume().GetReceivedSequence())
}

// TestTokenRevokedBeforeTheHello shows that a token is looked up again once the
// session stands.
func TestTokenRevokedBeforeTheHello(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		c := s.open(as(t.Context(), token(1)))
		synctest.Wait() // it is let in
		changed := registration(1)
		changed.TokenSha256 = hashOf("another")
		_, err := s.coderd().RegisterAgents(s.asCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{changed}})
		require.NoError(t, err)
		require.NoError(t, c.Send(hello(1, 1)))
		c.requireEnd(codes.Unauthenticated, "the token was revoked")
	})
}

func TestRelaying(t *testing.T) {
	s := start(t, settings{})
	s.register(1, 2)
	relay := func(id string) *stream { return s.open(as(t.Context(), coderdToken, "agentstats-agent-id", id)) }
	one, two := relay(nid(1).String()).greet(1, 1), relay(nid(2).String()).greet(2, 1)
	one.send(stats(gauge("custom", 1)))
	two.send(stats(gauge("custom", 2)))
	one.requireAck(1, 1)
	two.requireAck(1, 1)
	require.Len(t, s.exposition("custom"), 2)
	c := relay(nid(9).String())
	require.NoError(t, c.Send(hello(1, 1)))
	c.requireEnd(codes.NotFound, "agentstats-agent-id: no such agent is registered")
	relay("x").requireEnd(codes.InvalidArgument, "agentstats-agent-id: want a UUID")
	relay(uuid.Nil.String()).requireEnd(codes.InvalidArgument, "agentstats-agent-id: want a UUID")
	s.open(s.asCoderd()).requireEnd(codes.InvalidArgument, "coderd's credential needs the request metadata agentstats-agent-id once, to name the agent")
	s.open(as(t.Context(), token(1), "agentstats-agent-id", nid(2).String())).
		requireEnd(codes.PermissionDenied, "only coderd may name an agent by agentstats-agent-id")

	direct := s.connect(1, 1, 2)
	one.requireEnd(codes.Aborted, "superseded by a newer session")
	require.Equal(t, int64(1), direct.settings.GetResume().GetReceivedSequence())
}

func TestSessionAge(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{fleet: fleet.Options{SessionAge: 10 * time.Minute}})
		s.register(1, 2)
		stays, goes := s.connect(1, 1, 1), s.connect(2, 2, 1)
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			require.Equal(t, "session_age", goes.recv().GetReconnect().GetReason())
			require.NoError(t, goes.CloseSend())
			goes.requireEnd(codes.OK, "")
		})
		m := stays.recv().GetReconnect()
		require.Equal(t, "session_age", m.GetReason())
		require.InDelta(t, 10*time.Minute, time.Since(began), float64(time.Minute+2*time.Second))
		stays.send(stats(gauge("custom", 1)))
		stays.requireAck(1, 1)
		stays.requireEnd(codes.Unavailable, "the session is too old; connect again")
		wg.Wait()
		synctest.Wait() // the session is closed after its stream
		require.Equal(t, 1.0, s.counter("agentstatsd_sessions_total", "aged"))
	})
}

func TestGoodbyeDoesNotWaitForEver(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		c := s.connect(1, 1, 1)
		s.store.set(true)
		c.send(meta("k", "v"))
		c.send(goodbye())
		began := time.Now()
		c.requireEnd(codes.OK, "")
		require.Equal(t, 15*time.Second, time.Since(began))
		s.store.set(false)
	})
}

func TestUnavailableUntilLoaded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{down: true})
		s.open(as(t.Context(), token(1))).requireEnd(codes.Unavailable, "the token cannot be checked now")
		_, err := s.coderd().RegisterAgents(s.asCoderd(), &pb.RegisterAgentsRequest{})
		requireCode(t, err, codes.Unavailable, "the registrations are not available now; try again")
		_, err = s.coderd().ListAgents(s.asCoderd(), &pb.ListAgentsRequest{})
		requireCode(t, err, codes.Unavailable, "the registrations are not available now; try again")
		require.Equal(t, 1.0, s.counter("agentstatsd_auth_failures_total", "unavailable"))
		s.store.set(false)
		time.Sleep(time.Minute)
		s.register(1)
		s.connect(1, 1, 1)
	})
}

// TestDatabaseDown shows that streams go on, and what coderd is told.
func TestDatabaseDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{})
		s.register(1)
		s.store.set(true)
		c := s.connect(1, 1, 1)
		c.send(meta("k", "v"))
		c.send(lifecycle(pb.Lifecycle_STATE_READY))
		c.send(stats(gauge("custom", 1)))
		c.requireAck(3, 0)
		_, err := s.coderd().RegisterAgents(s.asCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{registration(2)}})
		requireCode(t, err, codes.Unavailable, "the database cannot be used now; try again")
		_, err = s.coderd().GetMetadata(s.asCoderd(), &pb.GetMetadataRequest{AgentIds: [][]byte{bid(1)}})
		requireCode(t, err, codes.Unavailable, "the database cannot be used now; try again")
		require.Contains(t, s.log.String(), errDown.Error())
		time.Sleep(time.Minute)
		s.store.set(false)
		c.requireAck(3, 3)
		require.Equal(t, []string{"k=v"}, s.stored(1))
	})
}
