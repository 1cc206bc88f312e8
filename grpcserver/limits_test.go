package grpcserver_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// bytesCodec sends bytes as they are.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal([]byte, any) error   { return nil }
func (bytesCodec) Name() string                  { return "proto" }

// methods returns the full names of all that is served, but for open services.
func methods(s *edgetest.Service) (closed, open []string) {
	for service, info := range s.Server.ServiceInfo() {
		for _, m := range info.Methods {
			name := "/" + service + "/" + m.Name
			if strings.HasPrefix(name, "/grpc.") {
				open = append(open, name)
				continue
			}
			closed = append(closed, name)
		}
	}
	return closed, open
}

// call opens a stream of any method.
func openCall(ctx context.Context, s *edgetest.Service, method string) grpc.ClientStream {
	s.T.Helper()
	stream, err := s.Conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(bytesCodec{}))
	require.NoError(s.T, err)
	return stream
}

// Nothing but the headers of a call is read before its caller is authenticated. A call
// without a message is answered. One whose message does not decode gets the same
// answer.
func TestNothingIsReadOfStrangers(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	closed, open := methods(s)
	require.GreaterOrEqual(t, len(closed), 10)
	require.GreaterOrEqual(t, len(open), 4)
	garbage := make([]byte, 4<<20)
	for i := range garbage {
		garbage[i] = 0xff
	}
	var reply []byte
	for _, method := range closed {
		for name, message := range map[string][]byte{"no message": nil, "4 MiB of garbage": garbage} {
			for _, token := range []string{"", "wrong"} {
				ctx, cancel := context.WithCancel(t.Context())
				if token != "" {
					ctx = edgetest.As(ctx, token)
				}
				stream := openCall(ctx, s, method)
				if message != nil {
					_ = stream.SendMsg(&message) // it may be refused before all is sent
				}
				require.Equal(t, codes.Unauthenticated, status.Code(stream.RecvMsg(&reply)), "%s, %s, token %q", method, name, token)
				cancel()
			}
		}
	}
	require.Zero(t, s.Counter("agentstatsd_grpc_limited_total", "first_message"))
}

// A method of another service than the open ones needs a credential also if nobody
// thought of it.
func TestAgentsAreNoCoderd(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	closed, _ := methods(s)
	var reply []byte
	for _, method := range closed {
		if method == pb.AgentService_Connect_FullMethodName {
			continue
		}
		ctx, cancel := context.WithCancel(edgetest.As(t.Context(), edgetest.Token(1)))
		require.Equal(t, codes.PermissionDenied, status.Code(openCall(ctx, s, method).RecvMsg(&reply)), method)
		cancel()
	}
}

func TestFirstMessageIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		closed, open := methods(s)
		var began time.Time
		var reply []byte
		for _, method := range closed {
			ctx := s.AsCoderd()
			within := 10 * time.Second
			text := "message: want the first one within 10s (--grpc-first-message-timeout)"
			switch {
			case strings.HasSuffix(method, "/SyncAgents"): // which has a timeout of its own
			case method == pb.AgentService_Connect_FullMethodName:
				ctx, text = edgetest.As(t.Context(), edgetest.Token(1)), "hello: want it within 10s (--grpc-first-message-timeout)"
			}
			began = time.Now()
			edgetest.RequireCode(t, openCall(ctx, s, method).RecvMsg(&reply), codes.InvalidArgument, text)
			require.Equal(t, within, time.Since(began), method)
		}
		for _, method := range open {
			began = time.Now()
			edgetest.RequireCode(t, openCall(t.Context(), s, method).RecvMsg(&reply), codes.InvalidArgument, "message: want the first one within 5s")
			require.Equal(t, 5*time.Second, time.Since(began), method)
		}
		require.Equal(t, float64(len(closed)-1+len(open)), s.Counter("agentstatsd_grpc_limited_total", "first_message"))
	})
}

func TestOpenServicesAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		health := healthpb.NewHealthClient(s.Conn)
		began := time.Now()
		var watches []healthpb.Health_WatchClient
		for range 4 { // a quarter of 16
			w, err := health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
			require.NoError(t, err)
			_, err = w.Recv()
			require.NoError(t, err)
			watches = append(watches, w)
		}
		w, err := health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
		require.NoError(t, err)
		_, err = w.Recv()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 16 calls of this kind at once, and 4 of one address (--grpc-max-open-calls 64)")
		require.Equal(t, 1.0, s.Counter("agentstatsd_grpc_limited_total", "open_calls"))

		// Probes go on, as clients call them.
		for range 100 {
			resp, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "agentstats.v1.CoderdService"})
			require.NoError(t, err)
			require.Equal(t, healthpb.HealthCheckResponse_SERVING, resp.GetStatus())
		}
		_, err = health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: strings.Repeat("x", 5000)})
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "message: want at most 4096 bytes, got 5003")

		_, err = watches[0].Recv()
		edgetest.RequireCode(t, err, codes.Unavailable, "the call has taken its time; call again")
		require.Equal(t, 10*time.Minute, time.Since(began))
		r, err := reflectionpb.NewServerReflectionClient(s.Conn).ServerReflectionInfo(t.Context())
		require.NoError(t, err)
		require.NoError(t, r.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
		_, err = r.Recv()
		require.NoError(t, err)
		_, err = r.Recv()
		edgetest.RequireCode(t, err, codes.Unavailable, "the call has taken its time; call again")
	})
}

func TestStreamsOfAnAgentAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxStreamsPerAgent: 2}})
		s.Register(1, 2)
		ctx, cancel := context.WithCancel(edgetest.As(t.Context(), edgetest.Token(1)))
		defer cancel()
		s.Connect(edgetest.Session{Agent: 1})
		// One of two more is refused, whichever comes second.
		idle, other := s.Open(ctx), s.Open(ctx)
		ended := make(chan error, 2)
		for _, c := range []*edgetest.Stream{idle, other} {
			go func() {
				_, err := c.Recv()
				ended <- err
			}()
		}
		require.Equal(t, codes.ResourceExhausted, status.Code(<-ended))
		require.Positive(t, s.Counter("agentstatsd_grpc_limited_total", "agent_streams"))
		s.Connect(edgetest.Session{Agent: 2}) // others are not delayed
		_ = idle.CloseSend()                  // one of them is over
		_ = other.CloseSend()
		err := <-ended
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.ErrorContains(t, err, "hello: want it as the first message, got none")
		synctest.Wait() // its place is free after its end is sent
		s.Connect(edgetest.Session{Agent: 1, Number: 2})
	})
}

func TestIdleStreamsEnd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{IdleTimeout: 90 * time.Second}})
		s.Register(1, 2, 3)
		silent, busy := s.Connect(edgetest.Session{Agent: 1}), s.Connect(edgetest.Session{Agent: 2})
		relayed := s.OpenRelay(s.AsCoderd()).Connect(t, edgetest.Session{Agent: 3})
		began := time.Now()
		for range 10 {
			time.Sleep(time.Minute)
			busy.SendNext(edgetest.Stats(&pb.Stats{}))
		}
		silent.RequireEnd(codes.DeadlineExceeded, "message: want one within 1m30s (--agent-idle-timeout)")
		require.Less(t, time.Since(began), 11*time.Minute)
		require.Equal(t, 1.0, s.Counter("agentstatsd_grpc_limited_total", "idle_stream"))
		require.Equal(t, 2.0, s.Counter("agentstatsd_sessions", ""))
		relayed.SendNext(edgetest.Stats(&pb.Stats{}))
		relayed.RequireDurable(1)
	})
}

// Whoever may only push has calls and room for large messages of its own: what it keeps
// coderd does not lack.
func TestThoseWhoOnlyPushLeaveRoom(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{
			MaxCoderdCalls: 8, MaxMessageBytes: 256 << 10, MaxAgentMessageBytes: 256 << 10, MaxReceivingBytes: 512 << 10,
		}})
		asPusher := edgetest.As(t.Context(), edgetest.PushToken)
		raw := dialRaw(s, t)
		for range 2 {
			id, err := raw.call(methodPush, "authorization", "Bearer "+edgetest.PushToken)
			require.NoError(t, err)
			require.NoError(t, raw.framer.WriteData(id, false, append(sizeOnly(200_000), 1)))
		}
		synctest.Wait()
		require.Equal(t, 200_000.0, s.Counter("agentstatsd_grpc_receiving_bytes", "push"), "the other one waits")
		more := openCall(asPusher, s, methodPush)
		began := time.Now()
		require.Equal(t, "want at most 2 calls of coderd at once (--max-coderd-calls)", status.Convert(more.RecvMsg(new([]byte))).Message())
		require.Less(t, time.Since(began), 10*time.Second)

		began = time.Now()
		req := &pb.RegisterAgentsRequest{}
		for n := range 500 {
			req.Agents = append(req.Agents, edgetest.Registration(100+n))
		}
		require.Greater(t, proto.Size(req), 64<<10)
		for range 8 {
			_, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
			require.NoError(t, err)
		}
		require.Less(t, time.Since(began), time.Second)
	})
}

func TestCallsOfCoderdAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxCoderdCalls: 2}})
		for range 2 {
			openCall(s.AsCoderd(), s, "/agentstats.v1.CoderdService/RegisterAgents")
		}
		synctest.Wait()
		_, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 2 calls of coderd at once (--max-coderd-calls)")
		require.Equal(t, 1.0, s.Counter("agentstatsd_grpc_limited_total", "coderd_calls"))
		time.Sleep(time.Minute) // those two have had their time
		_, err = s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		require.NoError(t, err)
	})
}
