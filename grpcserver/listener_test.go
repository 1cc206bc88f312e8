package grpcserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// dial opens a connection that says nothing.
func dial(s *edgetest.Service) net.Conn {
	s.T.Helper()
	c, err := s.Dial(s.T.Context())
	require.NoError(s.T, err)
	s.T.Cleanup(func() { _ = c.Close() })
	return c
}

// requireClosed waits until the service has closed the connection.
func requireClosed(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	_, err := io.Copy(io.Discard, c)
	require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
}

// client returns a client with a connection of its own.
func newClient(s *edgetest.Service) *grpc.ClientConn {
	s.T.Helper()
	conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(s.T, err)
	s.T.Cleanup(func() { _ = conn.Close() })
	return conn
}

func limited(s *edgetest.Service, reason string) float64 {
	return s.Counter("agentstatsd_grpc_limited_total", reason)
}

// One address has few connections of strangers, and as many as it likes of agents
// and coderd. Connections that are closed do not count.
func TestConnectionsOfStrangersAreBounded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{MaxStrangersPerAddress: 3}})
	s.Register(1)
	for range 10 {
		_, err := pb.NewCoderdServiceClient(newClient(s)).ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		require.NoError(t, err)
	}
	strangers := []net.Conn{dial(s), dial(s), dial(s)}
	requireClosed(t, dial(s))
	require.Positive(t, limited(s, "address_connections"))
	awaitLogged(t, s, `level=WARN msg="a connection was refused, as there are too many" peer=127.0.0.1 limit=address_connections suppressed=0`)
	require.Equal(t, 3.0, s.Counter("agentstatsd_usage", "grpc_unauthenticated_connections"))
	_, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
	require.NoError(t, err, "over a connection that is known")

	for _, c := range strangers {
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(s.AsCoderd(), time.Second)
		defer cancel()
		_, err := pb.NewCoderdServiceClient(newClient(s)).ListAgents(ctx, &pb.ListAgentsRequest{})
		return err == nil
	}, 30*time.Second, 10*time.Millisecond)
}

func TestConnectionsAreBounded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{MaxConnections: 2}})
	s.Register(1)
	other := newClient(s)
	_, err := pb.NewCoderdServiceClient(other).ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
	require.NoError(t, err)
	require.Equal(t, 2.0, s.Counter("agentstatsd_grpc_connections", ""))
	require.Equal(t, 2.0, s.Counter("agentstatsd_usage", "grpc_connections"))
	requireClosed(t, dial(s))
	require.Positive(t, limited(s, "connections"))
	awaitLogged(t, s, "limit=connections")
	require.NoError(t, other.Close())
	require.Eventually(t, func() bool { return s.Counter("agentstatsd_grpc_connections", "") == 1 }, 30*time.Second, 150*time.Millisecond)
	third := newClient(s)
	_, err = pb.NewCoderdServiceClient(third).ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
}

// A stranger has a while and a number of calls; a probe of health may go on.
func TestStrangersAreDisconnected(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{AuthenticationTimeout: 2 * time.Second}})
	s.Register(1)
	c := s.Connect(edgetest.Session{Agent: 1})
	requireClosed(t, dial(s))
	require.Positive(t, limited(s, "authentication_timeout"))
	awaitLogged(t, s, `level=WARN msg="a connection was closed: it made no authenticated call in time" peer=127.0.0.1 limit=authentication_timeout`)
	c.SendNext(edgetest.Stats(&pb.Stats{}))
	c.RequireDurable(1)
}

// Strangers that connect or call again and again are disconnected when their address
// has used up its allowance. Authenticated callers do not use it up.
func TestChurnOfStrangersIsBounded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{StrangerRate: 1, StrangerBurst: 20}})
	s.Register(1)
	for range 50 {
		_, err := pb.NewCoderdServiceClient(newClient(s)).ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		require.NoError(t, err)
	}
	require.Zero(t, limited(s, "unauthenticated_rate"))
	// Calls take of it, those that are answered too.
	calling := newClient(s)
	calls := 0
	require.Eventually(t, func() bool {
		calls++
		_, err := healthpb.NewHealthClient(calling).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err != nil
	}, 30*time.Second, time.Millisecond)
	require.Greater(t, calls, 10)
	require.Eventually(t, func() bool { return limited(s, "unauthenticated_rate") > 0 }, 30*time.Second, time.Millisecond)
	// So do connections.
	before := limited(s, "unauthenticated_rate")
	for range 10 {
		_ = dial(s).Close()
	}
	require.Eventually(t, func() bool { return limited(s, "unauthenticated_rate") > before }, 30*time.Second, time.Millisecond)
	_, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
	require.NoError(t, err, "over a connection that is known")
}

// A connection without a call is closed after a while, an authenticated one too.
func TestIdleConnectionsAreClosed(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{ConnectionIdleTimeout: 300 * time.Millisecond}})
	s.Register(1)
	c := s.Connect(edgetest.Session{Agent: 1})
	raw := dialRaw(s, t)
	id, err := raw.call(methodConnect, "authorization", "Bearer nobody's")
	require.NoError(t, err)
	require.NoError(t, raw.framer.WriteRSTStream(id, http2.ErrCodeCancel))
	select {
	case <-raw.closed:
	case <-time.After(15 * time.Second): // before the authentication timeout
		require.FailNow(t, "it is open")
	}
	require.Zero(t, limited(s, "authentication_timeout"))
	c.SendNext(edgetest.Stats(&pb.Stats{}))
	c.RequireDurable(1)
}

func TestCallsOfStrangersAreBounded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true})
	conn := newClient(s)
	for i := range 1000 {
		_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		require.NoError(t, err, i)
	}
	require.Zero(t, limited(s, "unauthenticated_calls"))
	require.Zero(t, s.Counter("agentstatsd_usage", "grpc_unauthenticated_calls"), "those of open services do not count")
	for range 90 {
		require.Error(t, conn.Invoke(t.Context(), "/a.Service/Method", &pb.Ack{}, &pb.Ack{}))
	}
	require.Equal(t, 90.0, s.Counter("agentstatsd_usage", "grpc_unauthenticated_calls"))
	for range 150 {
		// Of a method that is not served, too.
		err := conn.Invoke(t.Context(), "/a.Service/Method", &pb.Ack{}, &pb.Ack{})
		require.Error(t, err)
	}
	require.Positive(t, limited(s, "unauthenticated_calls"))
	_, err := pb.NewCoderdServiceClient(conn).ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
	for range 150 {
		_, err := pb.NewCoderdServiceClient(conn).ListAgents(edgetest.As(t.Context(), "wrong"), &pb.ListAgentsRequest{})
		require.Equal(t, codes.Unauthenticated, status.Code(err))
	}
}

// An agent's connection is read slowly when it has call after call; coderd's is not.
func TestCallsOfAgentsArePaced(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{AgentCallRate: 10, MaxStreamsPerAgent: 1}})
	s.Register(1)
	coderd := pb.NewCoderdServiceClient(newClient(s))
	for range 50 {
		_, err := coderd.ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		require.NoError(t, err)
	}
	require.Zero(t, limited(s, "call_rate"))

	ctx, cancel := context.WithCancel(edgetest.As(t.Context(), edgetest.Token(1)))
	defer cancel()
	agents := pb.NewAgentServiceClient(newClient(s))
	first, err := agents.Connect(ctx) // from which on it is no stranger's connection
	require.NoError(t, err)
	require.NoError(t, first.CloseSend())
	_, err = first.Recv()
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	// Two are read at once, then one each 100 ms. A machine may be too slow to make them
	// sooner than that, at times.
	const streams, rounds = 10, 100
	ends := make(chan error, streams*rounds)
	for round := 0; limited(s, "call_rate") == 0; round++ {
		require.Less(t, round, rounds)
		for range streams {
			opened, err := agents.Connect(ctx)
			require.NoError(t, err)
			go func() {
				_, err := opened.Recv()
				ends <- err
			}()
		}
		for range streams - 1 { // the service refuses all but one
			require.Equal(t, codes.ResourceExhausted, status.Code(<-ends))
		}
	}
}

// An agent that is refused for a while and calls all the same counts as a stranger. Its
// connection is closed, and new ones take of its address's allowance. Others are not
// disconnected, nor is a proxy's connection, or coderd's.
func TestCallsOfAgentsThatMustStayAwayAreBounded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{
		TCP: true, Fleet: fleet.Options{MessagesPerSecond: 1, MessagesBurst: 100},
		// Nothing is closed as idle, however slow the machine is.
		Server: grpcserver.Options{MaxStrangerCalls: 10, StrangerRate: 1, StrangerBurst: 200, IdleTimeout: 10 * time.Minute},
	})
	s.Register(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
	good := s.Connect(edgetest.Session{Agent: 2, Instance: 2})
	proxy := dialRaw(s, t)
	for _, n := range []int{1, 3, 4, 5, 6, 7, 8, 9, 10} {
		require.NoError(t, proxy.session(1, "authorization", "Bearer "+edgetest.Token(n)))
	}
	own := dialRaw(s, t)
	require.NoError(t, own.session(1, "authorization", "Bearer "+edgetest.Token(11)))
	require.Eventually(t, func() bool { return s.Counter("agentstatsd_sessions", "") == 11 }, 30*time.Second, time.Millisecond)
	// Agent 1 owes so many messages that it must stay away for more than a minute, from
	// the next call on.
	owes := s.Connect(edgetest.Session{Agent: 1, Number: 2})
	report := new(pb.Stats)
	for n := range 900 {
		series := edgetest.Gauge("series", 1).GetMetrics()[0]
		series.Labels = []*pb.Stats_Metric_Label{{Name: "number", Value: fmt.Sprint(n)}}
		report.Metrics = append(report.Metrics, series)
	}
	owes.SendNext(edgetest.Stats(report))
	owes.RequireDurable(1)
	// reset opens a stream of agent 1 and resets it; an error says that the connection
	// is closed.
	reset := func(c *rawClient) error {
		id, err := c.call(methodConnect, "authorization", "Bearer "+edgetest.Token(1))
		if err != nil {
			return err
		}
		return c.framer.WriteRSTStream(id, http2.ErrCodeCancel)
	}
	connections := 0
	for limited(s, "unauthenticated_rate") == 0 && connections < 200 {
		connections++
		c := &rawClient{t: t, conn: dial(s), next: 1}
		c.header, c.framer = hpack.NewEncoder(&c.fields), http2.NewFramer(c.conn, c.conn)
		_, err := io.WriteString(c.conn, http2.ClientPreface)
		if err == nil {
			err = c.framer.WriteSettings()
		}
		for i := 0; i < 100 && err == nil; i++ {
			err = reset(c)
		}
		requireClosed(t, c.conn)
	}
	require.Less(t, connections, 200, "each has more calls than a stranger may have")
	for limited(s, "turned_away_calls") == 0 && reset(own) == nil { // nothing is left of the allowance, but for one a second
	}
	<-own.closed
	require.Positive(t, limited(s, "turned_away_calls"))

	for range 100 {
		require.NoError(t, reset(proxy), "its connection has others, too")
	}
	relay := s.OpenRelay(s.AsCoderd())
	for range 100 {
		relayed := relay.Open(t.Context(), t, 1)
		require.NoError(t, relayed.Send(edgetest.Hello(edgetest.Session{})))
	}
	good.SendNext(edgetest.Stats(&pb.Stats{}))
	good.RequireDurable(1)
	select {
	case <-proxy.closed:
		require.FailNow(t, "the proxy's connection is closed")
	default:
	}
}
