package agentapi_test

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// TestSession goes the way of an agent from hello to goodbye.
func TestSession(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{SessionAge: time.Hour}})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1, Instance: 7})
		want := &pb.Settings{
			ReportInterval: durationpb.New(30 * time.Second),
			SessionAge:     durationpb.New(time.Hour),
			Limits: &pb.Limits{
				MessageBytes: 1 << 20, Series: 1000, MetadataKeys: 128,
				MetadataKeyBytes: 1024, MetadataReportKeyBytes: 6144, MetadataValueBytes: 2048, MetadataErrorBytes: 2048,
			},
			Resume:   &pb.Resume{},
			Epoch:    time.Now().UnixNano(),
			AckDelay: durationpb.New(5 * time.Second),
		}
		require.True(t, proto.Equal(want, c.Settings), "got %v", c.Settings)

		c.SendNext(edgetest.Stats(&pb.Stats{
			RxBytes: 100, ConnectionCount: 2, ConnectionMedianLatencyMs: 20,
			SessionCounts: map[string]int64{"cursor": 1, "vscode": 2, "ssh": 0},
			Metrics:       []*pb.Stats_Metric{{Name: "custom", Type: pb.Stats_Metric_TYPE_GAUGE, Value: 3, Labels: []*pb.Stats_Metric_Label{{Name: "k", Value: "v"}}}},
		}))
		c.RequireDurable(1)
		labels := `{agent_name="main",username="ada",workspace_name="ws1"}`
		require.Equal(t, []string{"coderd_agentstats_rx_bytes" + labels + " 100"}, s.Exposition("rx_bytes"))
		require.Equal(t, []string{"coderd_agentstats_session_count_vscode" + labels + " 3"}, s.Exposition("session_count_vscode"))
		require.Len(t, s.Exposition(`k="v"`), 1)

		c.SendNext(edgetest.Metadata("cpu", "1", "mem", "2"))
		c.RequireAck(edgetest.Ack{Received: 2, Durable: 1})
		require.Empty(t, s.StoredMetadata(1))
		c.RequireDurable(2)
		require.Equal(t, []string{"cpu=1", "mem=2"}, s.StoredMetadata(1))

		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_READY))
		c.RequireAck(edgetest.Ack{Received: 3, Durable: 2})
		c.RequireDurable(3)
		c.SendNext(&pb.ConnectRequest{AppHealth: &pb.AppHealthReport{
			Updates: []*pb.AppHealthUpdate{{Id: edgetest.IDBytes(50_001), Health: pb.AppHealth_APP_HEALTH_HEALTHY}},
		}})
		c.SendNext(&pb.ConnectRequest{Network: &pb.Network{
			NodeId: 9, PreferredRegionId: 1, Regions: []*pb.Network_Region{{Id: 1, Latency: durationpb.New(time.Millisecond)}, {Id: 2, Name: "Sydney"}},
		}})
		c.RequireDurable(5)
		states, _, err := s.Store.States(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, states, 1)
		require.Equal(t, agent.LifecycleReady, states[0].Lifecycle.State)
		require.Equal(t, agent.AppHealthHealthy, states[0].AppHealth[edgetest.ID(50_001)])
		require.Equal(t, agent.Network{NodeID: 9, PreferredRegion: 1, Regions: []agent.Region{
			{ID: 1, Name: "Unnamed 1", Latency: time.Millisecond}, {ID: 2, Name: "Sydney", Latency: -1},
		}}, states[0].Network)

		c.SendNext(edgetest.Metadata("cpu", "5"))
		c.SendNext(edgetest.Goodbye())
		require.NoError(t, c.CloseSend())
		received, durable := c.NextAck()
		for received < 7 {
			received, durable = c.NextAck()
		}
		require.Equal(t, int64(5), durable)
		require.Empty(t, s.Exposition("coderd_agentstats_"), "at once, not when the last ack is sent")
		c.RequireDurable(7)
		c.RequireEnd(codes.OK, "")
		require.Equal(t, []string{"cpu=5", "mem=2"}, s.StoredMetadata(1))
		require.Equal(t, 1.0, s.Counter("agentstatsd_sessions_ended_total", "goodbye"))
		require.Equal(t, 2.0, s.Counter("agentstatsd_agent_requests_total", "metadata"))
	})
}

func TestViolations(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{
		Server: grpcserver.Options{MaxAgentMessageBytes: 1000},
	})
	with := func(req *pb.ConnectRequest, change func(*pb.ConnectRequest)) *pb.ConnectRequest {
		change(req)
		return req
	}
	good := edgetest.Hello(edgetest.Session{})
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
		{"no hello", []*pb.ConnectRequest{seq(1, edgetest.Stats(&pb.Stats{}))}, codes.InvalidArgument, "hello: want it as the first message"},
		{"empty", []*pb.ConnectRequest{{}}, codes.InvalidArgument, "hello: want it as the first message"},
		{"protocol version", []*pb.ConnectRequest{with(edgetest.Hello(edgetest.Session{}), func(r *pb.ConnectRequest) { r.GetHello().ProtocolVersion = 2 })}, codes.FailedPrecondition, "hello.protocol_version: want 1, got 2"},
		{"instance", []*pb.ConnectRequest{with(edgetest.Hello(edgetest.Session{}), func(r *pb.ConnectRequest) { r.GetHello().InstanceId = []byte("short") })}, codes.InvalidArgument, "hello.instance_id: want 16 bytes, got 5"},
		{"session", []*pb.ConnectRequest{edgetest.Hello(edgetest.Session{Number: -1})}, codes.InvalidArgument, "hello.session: want at least 0, got -1"},
		{"hello with stats", []*pb.ConnectRequest{{Hello: &pb.Hello{InstanceId: make([]byte, 16), ProtocolVersion: 1}, Stats: &pb.Stats{}}}, codes.InvalidArgument, "hello: want nothing beside it"},
		{"uncounted", []*pb.ConnectRequest{edgetest.Hello(edgetest.Session{}), {Sequence: 1, StatsUncounted: true, AckNow: true}}, codes.InvalidArgument, "stats_uncounted: want it with stats only"},
		{"superseded", []*pb.ConnectRequest{edgetest.Hello(edgetest.Session{}), {Sequence: 1, StatsSuperseded: true, AckNow: true}}, codes.InvalidArgument, "stats_superseded: want it with stats only"},
		{"epoch", []*pb.ConnectRequest{{Hello: &pb.Hello{InstanceId: make([]byte, 16), ProtocolVersion: 1, Epoch: -1}}}, codes.InvalidArgument, "hello.epoch: want at least 0, got -1"},
		{"sequence of hello", []*pb.ConnectRequest{seq(4, edgetest.Hello(edgetest.Session{}))}, codes.InvalidArgument, "sequence: want 0 with hello, got 4"},
		{"second hello", []*pb.ConnectRequest{good, edgetest.Hello(edgetest.Session{Number: 2})}, codes.InvalidArgument, "hello: want it as the first message only"},
		{"no message", []*pb.ConnectRequest{good, {Sequence: 1}}, codes.InvalidArgument, "message: want any of stats, metadata, lifecycle, app_health, network, goodbye and ack_now, got none"},
		{"zero sequence", []*pb.ConnectRequest{good, edgetest.Stats(&pb.Stats{})}, codes.InvalidArgument, "sequence: want at least 1, got 0"},
		{"negative sequence", []*pb.ConnectRequest{good, seq(-1, edgetest.Stats(&pb.Stats{}))}, codes.InvalidArgument, "sequence: want at least 1, got -1"},
		{"after goodbye", []*pb.ConnectRequest{good, seq(1, edgetest.Metadata("k", "v")), seq(2, edgetest.Goodbye()), seq(3, edgetest.Goodbye())}, codes.InvalidArgument, "message: want none after goodbye"},
		{"too large", []*pb.ConnectRequest{good, seq(1, edgetest.Metadata("k", strings.Repeat("x", 1000)))}, codes.ResourceExhausted, "message: want at most 1000 bytes (--max-agent-message-bytes), got 1017"},
		{"hello too large", []*pb.ConnectRequest{seq(1, edgetest.Metadata("k", strings.Repeat("x", 1000)))}, codes.ResourceExhausted, "hello: want at most 1000 bytes (--max-agent-message-bytes), got 1017"},
	} {
		if len(c.send) == 0 && edgetest.IsOverRelay(t) {
			continue // then there is no session
		}
		t.Run(c.name, func(t *testing.T) {
			s.Register(i)
			stream := s.Open(edgetest.As(t.Context(), edgetest.Token(i)))
			stream.T = t
			for _, req := range c.send {
				require.NoError(t, stream.Send(req))
			}
			require.NoError(t, stream.CloseSend())
			stream.RequireEnd(c.code, c.text)
		})
	}
}

// Half a second between the two requests would be one item less.
func TestTooMuchIsRefused(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{RefusedBurst: 3, RefusedPerSecond: 1}})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		c.SendNext(edgetest.Metadata("", "", "", "", "", ""))
		c.SendNext(edgetest.Metadata("", "", "", ""))
		require.NoError(t, c.CloseSend())
		c.RequireEnd(codes.ResourceExhausted, "refused items of the agent: want at most 3 at once (--agent-refused-burst) and 1 a second after that (--agent-refused-rate), got 5")
	})
}

func TestMalformedMessage(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	c := s.Connect(edgetest.Session{Agent: 1})
	// The bytes of field 3 (stats) end early.
	bad := &pb.ConnectRequest{}
	bad.ProtoReflect().SetUnknown([]byte{0x1a, 0x05, 0x01})
	require.NoError(t, c.Send(bad))
	c.RequireEnd(codes.InvalidArgument, "stats (field 3): want a well-formed agentstats.v1.ConnectRequest: it is cut off")
}

func TestHelloTimeout(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		start := time.Now()
		s.Open(edgetest.As(t.Context(), edgetest.Token(1))).RequireEnd(codes.InvalidArgument, "hello: want it within 10s (--grpc-first-message-timeout)")
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestRefusalsByName(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		r := edgetest.Registration(1)
		r.MetadataKeys = []string{"cpu"}
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{r}})
		require.NoError(t, err)
		c := s.Connect(edgetest.Session{Agent: 1})

		refused := func() *pb.Refusal {
			t.Helper()
			m := c.Next()
			require.NotNil(t, edgetest.RefusalOf(m), "got %v", m)
			return edgetest.RefusalOf(m)
		}
		c.SendNext(edgetest.Stats(&pb.Stats{Metrics: []*pb.Stats_Metric{
			{Name: "good", Value: 1}, {Name: "bad name", Value: 1}, {Name: "worse name", Value: 2},
		}}))
		got := refused()
		require.Equal(t, int64(1), got.GetSequence())
		require.Equal(t, pb.RefusalCode_REFUSAL_CODE_INVALID, got.GetCode())
		require.Equal(t, "invalid_name", got.GetReason())
		require.Equal(t, []string{"bad name", "worse name"}, got.GetNames())
		require.Equal(t, int64(2), got.GetCount())
		c.RequireDurable(1)
		require.Len(t, s.Exposition("good"), 1)

		c.SendNext(edgetest.Metadata("cpu", "1", "mem", "2"))
		got = refused()
		require.Equal(t, "undeclared_key", got.GetReason())
		require.Equal(t, pb.RefusalCode_REFUSAL_CODE_NOT_ALLOWED, got.GetCode())
		require.Equal(t, []string{"mem"}, got.GetNames())
		c.RequireDurable(2)
		require.Equal(t, []string{"cpu=1"}, s.StoredMetadata(1))

		c.SendNext(edgetest.Lifecycle(-999))
		got = refused()
		require.Equal(t, "lifecycle.state: unknown lifecycle state -999", got.GetMessage())
		require.Equal(t, "unknown_state", got.GetReason())
		c.RequireDurable(3)

		c.SendNext(&pb.ConnectRequest{Lifecycle: &pb.Lifecycle{
			State: pb.Lifecycle_STATE_READY, ChangedAt: &timestamppb.Timestamp{Seconds: -5},
		}})
		require.Equal(t, "lifecycle.changed_at: want a time from 1970 to 2262, got -5 s and 0 ns since 1970", refused().GetMessage())
		c.RequireDurable(4)

		healthy := pb.AppHealth_APP_HEALTH_HEALTHY
		c.SendNext(&pb.ConnectRequest{AppHealth: &pb.AppHealthReport{Updates: []*pb.AppHealthUpdate{
			{Id: []byte("x"), Health: healthy}, {Id: edgetest.IDBytes(50_001)}, {Id: edgetest.IDBytes(50_001), Health: healthy}, {Id: edgetest.IDBytes(50_001), Health: healthy}, {Id: edgetest.IDBytes(9), Health: healthy},
		}}})
		require.Equal(t, "app_health.updates[0].id: want 16 bytes, got 1", refused().GetMessage())
		require.Equal(t, "app_health.updates[1].health: unknown health 0", refused().GetMessage())
		require.Equal(t, "app_health.updates[3].id: want each app once, got "+edgetest.ID(50_001).String()+" again", refused().GetMessage())
		require.Equal(t, []string{edgetest.ID(9).String()}, refused().GetNames())
		c.RequireAck(edgetest.Ack{Received: 5, Durable: 4})
		c.RequireDurable(5)

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
			c.SendNext(&pb.ConnectRequest{Network: n})
			require.Equal(t, text, refused().GetMessage())
			c.RequireDurable(c.Sequence)
		}
	})
}

func TestGarbageIsSentAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{RefusedBurst: 10, RefusedPerSecond: 1}})
		s.Register(1, 2)
		c := s.Connect(edgetest.Session{Agent: 1})
		c.SendNext(edgetest.Stats(&pb.Stats{Metrics: make([]*pb.Stats_Metric, 0)}))
		bad := &pb.Stats{}
		for range 15 {
			bad.Metrics = append(bad.Metrics, &pb.Stats_Metric{Name: "bad name"})
		}
		c.SendNext(edgetest.Stats(bad))
		var err error
		refused := 0
		for err == nil {
			var m *pb.ConnectResponse
			m, err = c.Recv()
			if edgetest.RefusalOf(m) != nil {
				refused++
			}
		}
		require.Equal(t, 1, refused, "the refusal says why")
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.InDelta(t, 5, edgetest.RetryDelay(t, err).Seconds(), 0.5)

		// A call before that is delayed, and its status has the remaining time.
		began := time.Now()
		c = s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
		_, err = c.Recv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Equal(t, time.Second, time.Since(began))
		require.InDelta(t, 4, edgetest.RetryDelay(t, err).Seconds(), 0.5)
		s.Connect(edgetest.Session{Agent: 2}) // nobody else is
		time.Sleep(edgetest.RetryDelay(t, err) + time.Millisecond)

		c = s.Connect(edgetest.Session{Agent: 1, Number: 2})
		c.SendNext(edgetest.Stats(edgetest.Gauge("bad name", 1)))
		c.RequireEnd(codes.ResourceExhausted, "refused items of the agent: want at most 10 at once (--agent-refused-burst) and 1 a second after that (--agent-refused-rate), got 11")
		synctest.Wait() // it is counted after its end was sent
		require.Equal(t, 2.0, s.Counter("agentstatsd_sessions_ended_total", "refused"))
		require.Equal(t, 2.0, s.Counter("agentstatsd_agents_limited_total", "refused"))
		require.Equal(t, 1.0, s.Counter("agentstatsd_sessions_refused_total", ""))
	})
}

// Who breaks the contract over and over is away, too.
func TestBrokenMessagesAreCounted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		for session := int64(1); ; session++ {
			require.Less(t, session, int64(13))
			c := s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
			if session%2 == 0 {
				require.NoError(t, c.Send(edgetest.Hello(edgetest.Session{Number: session})))
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
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{MessagesPerSecond: 10, MessagesBurst: 100}})
		s.Register(1, 2)
		flood, good := s.Connect(edgetest.Session{Agent: 1}), s.Connect(edgetest.Session{Agent: 2})
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
			req := edgetest.Stats(edgetest.Gauge("custom", 1))
			for seq := int64(1); ; seq++ {
				req.Sequence = seq
				if flood.Send(req) != nil {
					return
				}
			}
		}()
		for i := range 5 {
			good.SendNext(edgetest.Stats(edgetest.Gauge("custom", float64(i))))
			asked := time.Now()
			good.RequireDurable(int64(i + 1))
			require.LessOrEqual(t, time.Since(asked), 10*time.Millisecond)
			time.Sleep(time.Second)
		}
		err := <-ended
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Equal(t, 30*time.Second, edgetest.RetryDelay(t, err))
		took := time.Since(began).Seconds()
		require.InDelta(t, 10, took, 2)
		require.InDelta(t, 100+10*took, s.Counter("agentstatsd_agent_requests_total", "stats")-5, 30, "the rest was never read")
		require.Equal(t, 1.0, s.Counter("agentstatsd_agents_limited_total", "message_rate"))
		require.NotZero(t, s.Counter("agentstatsd_agent_messages_delayed_total", "message_rate"))
	})
}

// A message of too many elements is refused before it takes the memory.
func TestElementsAreCounted(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	c := s.Connect(edgetest.Session{Agent: 1})
	c.Patient = true
	// The bytes of field 12 (metrics), which are encoded already.
	st := &pb.Stats{}
	st.ProtoReflect().SetUnknown(bytes.Repeat([]byte{12<<3 | 2, 0}, 200_000))
	c.SendNext(edgetest.Stats(st))
	c.RequireEnd(codes.ResourceExhausted,
		"message: want at most 8388608 bytes in memory once decoded (8 times --max-agent-message-bytes), got 400006 encoded and at least 8388648 decoded: it has too many elements")
}

func TestTakeoverAndResume(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		first := s.Connect(edgetest.Session{Agent: 1})
		first.SendNext(edgetest.Stats(&pb.Stats{RxBytes: 10}))
		first.RequireDurable(1)
		first.SendNext(edgetest.Metadata("k", "v"))
		first.RequireAck(edgetest.Ack{Received: 2, Durable: 1})

		second := s.Connect(edgetest.Session{Agent: 1, Number: 2})
		require.Equal(t, int64(2), second.Settings.GetResume().GetReceivedSequence())
		require.Equal(t, int64(1), second.Settings.GetResume().GetDurableSequence())
		first.RequireEnd(codes.Aborted, "superseded by a newer session")
		second.RequireDurable(2)

		require.NoError(t, second.Send(&pb.ConnectRequest{Sequence: 1, Stats: &pb.Stats{RxBytes: 10}, AckNow: true}))
		second.RequireDurable(2)
		require.Contains(t, s.Exposition("rx_bytes")[0], "} 10", "a duplicate is ignored")

		require.NoError(t, second.Send(&pb.ConnectRequest{Sequence: 100, Stats: &pb.Stats{RxBytes: 5}}))
		second.RequireDurable(100)
		require.Contains(t, s.Exposition("rx_bytes")[0], "} 15")

		other := s.Connect(edgetest.Session{Agent: 1, Instance: 2})
		require.Zero(t, other.Settings.GetResume().GetReceivedSequence(), "of another instance nothing is known")
		second.RequireEnd(codes.Aborted, "superseded by a newer session")
	})
}

func TestStreamsOfAgentsThatGo(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1, 2, 3)
	deregistered, superseded, revoked := s.Connect(edgetest.Session{Agent: 1}), s.Connect(edgetest.Session{Agent: 2, Instance: 2}), s.Connect(edgetest.Session{Agent: 3, Instance: 3})
	for _, c := range []*edgetest.Stream{deregistered, superseded, revoked} {
		c.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
		c.RequireDurable(1)
	}
	require.Len(t, s.Exposition("custom"), 3)

	_, err := s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
	require.NoError(t, err)
	deregistered.RequireEnd(codes.Unauthenticated, "the agent was deregistered")
	s.Open(edgetest.As(t.Context(), edgetest.Token(1))).RequireEnd(codes.Unauthenticated, "unknown token")

	changed := edgetest.Registration(3)
	changed.TokenSha256 = edgetest.TokenHash("another")
	resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{edgetest.Rebuilt(edgetest.Registration(2), 12), changed}})
	require.NoError(t, err)
	require.Equal(t, [][]byte{edgetest.IDBytes(2)}, resp.GetSupersededIds())
	superseded.RequireEnd(codes.Unauthenticated, "the agent was superseded by that of a newer build")
	revoked.RequireEnd(codes.Unauthenticated, "the token was revoked")
	require.Empty(t, s.Exposition("custom"))

	s.Connect(edgetest.Session{Agent: 12})
	c := s.Open(edgetest.As(t.Context(), "another")).SayHello(edgetest.Session{Instance: 3, Number: 2})
	require.Equal(t, int64(1), c.Settings.GetResume().GetReceivedSequence())
}

// TestTokenRevokedBeforeTheHello shows that a token is looked up again once the
// session stands.
func TestTokenRevokedBeforeTheHello(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		c := s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
		synctest.Wait() // it is let in
		changed := edgetest.Registration(1)
		changed.TokenSha256 = edgetest.TokenHash("another")
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{changed}})
		require.NoError(t, err)
		require.NoError(t, c.Send(edgetest.Hello(edgetest.Session{})))
		c.RequireEnd(codes.Unauthenticated, "the token was revoked")
	})
}

func TestSessionAge(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{SessionAge: 10 * time.Minute}})
		s.Register(1, 2)
		stays, goes := s.Connect(edgetest.Session{Agent: 1}), s.Connect(edgetest.Session{Agent: 2, Instance: 2})
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			require.Equal(t, "session_age", goes.Next().GetReconnect().GetReason())
			require.NoError(t, goes.CloseSend())
			goes.RequireEnd(codes.OK, "")
		})
		m := stays.Next().GetReconnect()
		require.Equal(t, "session_age", m.GetReason())
		require.InDelta(t, 10*time.Minute, time.Since(began), float64(time.Minute+2*time.Second))
		stays.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
		stays.RequireDurable(1)
		stays.RequireEnd(codes.Unavailable, "the session is too old; connect again")
		wg.Wait()
		synctest.Wait() // the session is closed after its stream
		require.Equal(t, 1.0, s.Counter("agentstatsd_sessions_ended_total", "aged"))
	})
}

// panickingStats is a component that is broken.
type panickingStats struct{}

func (panickingStats) Report(agent.ID, int64, time.Time, agent.Report) ([]agent.Refusal, int) {
	panic("secret of the service")
}

func (panickingStats) AddBytes(agent.ID, int64, time.Time, agent.Stats) []agent.Refusal {
	panic("secret of the service")
}

func TestPanicEndsTheSession(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{ChangeAgents: func(c *agentapi.Components) { c.Stats = panickingStats{} }})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		require.Equal(t, 1.0, s.Counter("agentstatsd_sessions", ""))
		c.SendNext(edgetest.Stats(&pb.Stats{}))
		c.RequireEnd(codes.Internal, "internal error")
		synctest.Wait()
		require.Zero(t, s.Counter("agentstatsd_sessions", ""))
	})
}

func TestGoodbyeDoesNotWaitForEver(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		s.Store.SetDown(true)
		c.SendNext(edgetest.Metadata("k", "v"))
		c.SendNext(edgetest.Goodbye())
		began := time.Now()
		c.RequireEnd(codes.OK, "")
		require.Equal(t, 15*time.Second, time.Since(began))
		s.Store.SetDown(false)
	})
}

func TestUnavailableUntilLoaded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Down: true})
		s.Open(edgetest.As(t.Context(), edgetest.Token(1))).RequireEnd(codes.Unavailable, "the token cannot be checked now")
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{})
		edgetest.RequireCode(t, err, codes.Unavailable, "the registrations are not available now; try again")
		_, err = s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		edgetest.RequireCode(t, err, codes.Unavailable, "the registrations are not available now; try again")
		require.Equal(t, 1.0, s.Counter("agentstatsd_auth_failures_total", "unavailable"))
		s.Store.SetDown(false)
		time.Sleep(time.Minute)
		s.Register(1)
		s.Connect(edgetest.Session{Agent: 1})
	})
}

// TestDatabaseDown shows that streams go on, and what coderd gets.
func TestDatabaseDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		s.Store.SetDown(true)
		c := s.Connect(edgetest.Session{Agent: 1})
		c.SendNext(edgetest.Metadata("k", "v"))
		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_READY))
		c.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
		c.RequireAck(edgetest.Ack{Received: 3})
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{edgetest.Registration(2)}})
		edgetest.RequireCode(t, err, codes.Unavailable, "the database cannot be used now; try again")
		_, err = s.Coderd().GetMetadata(s.AsCoderd(), &pb.GetMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
		edgetest.RequireCode(t, err, codes.Unavailable, "the database cannot be used now; try again")
		require.Contains(t, s.Log.String(), edgetest.ErrDown.Error())
		time.Sleep(time.Minute)
		s.Store.SetDown(false)
		c.RequireDurable(3)
		require.Equal(t, []string{"k=v"}, s.StoredMetadata(1))
	})
}
