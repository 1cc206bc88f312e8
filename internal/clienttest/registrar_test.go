package clienttest

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// fakeRegistry is a fakeRelay that knows only the agents that were registered with it.
type fakeRegistry struct {
	agentstatsv1.UnimplementedAgentServiceServer
	agentstatsv1.UnimplementedCoderdServiceServer

	mu    sync.Mutex
	known map[uuid.UUID]bool
	calls int
	twice bool  // an agent was twice in one call
	err   error // of the next registration
	// opened has how many sessions agents have had.
	opened map[uuid.UUID]int
}

func (f *fakeRegistry) RegisterAgents(_ context.Context, req *agentstatsv1.RegisterAgentsRequest) (*agentstatsv1.RegisterAgentsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if err := f.err; err != nil {
		f.err = nil
		return nil, err
	}
	named := make(map[uuid.UUID]bool)
	for _, r := range req.GetAgents() {
		id := uuid.UUID(r.GetId())
		f.twice = f.twice || named[id]
		named[id], f.known[id] = true, true
	}
	return &agentstatsv1.RegisterAgentsResponse{}, nil
}

// RelayAgents opens sessions of agents that are known, and ends others. It acks nothing.
func (f *fakeRegistry) RelayAgents(server agentstatsv1.AgentService_RelayAgentsServer) error {
	for {
		m, err := server.Recv()
		if err != nil {
			return nil
		}
		responses := &agentstatsv1.RelayAgentsResponse{}
		f.mu.Lock()
		for _, q := range m.GetRequests() {
			r := &agentstatsv1.RelayedResponse{Index: q.GetIndex(), Credit: 1}
			switch {
			case len(q.GetAgentId()) == 0:
			case f.known[uuid.UUID(q.GetAgentId())]:
				if f.opened != nil {
					f.opened[uuid.UUID(q.GetAgentId())]++
				}
				r.Response = &agentstatsv1.ConnectResponse{Settings: &agentstatsv1.Settings{Resume: &agentstatsv1.Resume{}}}
			default:
				r.End = &agentstatsv1.RelayedEnd{Code: uint32(codes.NotFound)}
			}
			responses.Responses = append(responses.Responses, r)
		}
		f.mu.Unlock()
		if server.Send(responses) != nil {
			return nil
		}
	}
}

// TestRelaysRegisterManyAtOnce: a storm of unknown agents becomes few calls, also if one
// of these fails. No call has an agent twice, though some have two relays.
func TestRelaysRegisterManyAtOnce(t *testing.T) {
	for _, failure := range []error{nil, status.Error(codes.Unavailable, "down")} {
		bubble.Test(t, func(t *testing.T) {
			const agents = 1500
			fake := &fakeRegistry{known: make(map[uuid.UUID]bool), err: failure}
			n := newNetwork(func(s *grpc.Server) {
				agentstatsv1.RegisterAgentServiceServer(s, fake)
				agentstatsv1.RegisterCoderdServiceServer(s, fake)
			})
			defer n.stop()
			conn, err := client.Dial("passthrough:///x", client.DialOptions{Plaintext: true}, grpc.WithContextDialer(n.dial))
			require.NoError(t, err)
			defer closeConn(t, conn)
			coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
			require.NoError(t, err)
			var relayed []*client.Agent
			var stops []func() error
			for _, r := range append(registrations(agents), registrations(10)...) {
				id := uuid.UUID(r.GetId())
				r.Id = nil
				agent, err := coderd.Relay(id, client.AgentOptions{Registration: r})
				require.NoError(t, err)
				relayed, stops = append(relayed, agent), append(stops, run(t.Context(), agent.Run))
			}
			time.Sleep(time.Minute)
			fake.mu.Lock()
			require.Len(t, fake.known, agents)
			require.Less(t, fake.calls, 10)
			require.False(t, fake.twice)
			fake.mu.Unlock()
			for i := range relayed {
				require.Equal(t, client.Connected, relayed[i].Status().Connection)
				require.NoError(t, stops[i]())
			}
		})
	}
}

// relayedStates relays for an agent with a registration, and returns its states.
func relayedStates(t *testing.T, c *client.Coderd, reg *agentstatsv1.AgentRegistration) (states chan client.State, stop func() error) {
	t.Helper()
	states = make(chan client.State, 1000)
	agent, err := c.Relay(uuid.UUID(reg.GetId()), client.AgentOptions{
		Registration: reg, Backoff: client.Backoff{Min: 5 * time.Millisecond, Max: 5 * time.Millisecond},
		OnState: func(s client.State) {
			select {
			case states <- s:
			default: // nobody reads any more
			}
		},
	})
	require.NoError(t, err)
	return states, run(t.Context(), agent.Run)
}

// awaitState returns the first state with the phase after those that were read.
func awaitState(states <-chan client.State, phase client.Connection) client.State {
	for {
		if s := <-states; s.Connection == phase {
			return s
		}
	}
}

// Against the real service: an unknown agent is registered by its relay before the
// first wait, and not again after coderd has removed it.
func TestRelayRegisters(t *testing.T) {
	_, coderd := startCoderd(t)
	reg := proto.CloneOf(registration())
	reg.TokenSha256, reg.Workspace.OwnerId, reg.Workspace.Template.Id, reg.Workspace.Build = nil, nil, nil, nil
	states, stop := relayedStates(t, coderd, reg)
	require.Equal(t, client.Connecting, (<-states).Connection)
	require.Equal(t, client.Connecting, (<-states).Connection, "without a wait")
	require.Equal(t, client.Connected, (<-states).Connection)
	require.Equal(t, 1, listed(t, coderd))

	_, err := coderd.Deregister(t.Context(), []uuid.UUID{uuid.UUID(reg.GetId())}, nil)
	require.NoError(t, err)
	for err := error(nil); err == nil || !strings.Contains(err.Error(), "it is not registered again"); {
		err = awaitState(states, client.Waiting).Err
	}
	require.Zero(t, listed(t, coderd))
	require.NoError(t, stop())
}

// A registration that the service refuses, or that is an old one, is sent once.
func TestRelayIsNotRegistered(t *testing.T) {
	_, coderd := startCoderd(t)
	bad := registrations(1)[0]
	bad.Name = ""
	states, stop := relayedStates(t, coderd, bad)
	for range 3 {
		require.ErrorContains(t, awaitState(states, client.Waiting).Err, "the registration is refused: name: want 1 to 64 bytes, got 0")
	}
	require.NoError(t, stop())

	newer := registrations(1)[0]
	older := proto.CloneOf(newer)
	id := uuid.New()
	older.Id = id[:]
	newer.CreatedAt.Seconds++
	_, err := coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{newer}, nil)
	require.NoError(t, err)
	states, stop = relayedStates(t, coderd, older)
	for range 3 {
		require.ErrorContains(t, awaitState(states, client.Waiting).Err, "one of a newer build is registered in its place")
	}
	require.NoError(t, stop())
	require.Equal(t, 1, listed(t, coderd))

	_, err = coderd.Relay(id, client.AgentOptions{Registration: newer})
	require.ErrorContains(t, err, "registration: is of another agent")
	_, err = client.NewAgent(nil, client.AgentOptions{Registration: newer})
	require.EqualError(t, err, "agent options: registration: want none, only coderd registers agents")
}

// A relay that was not connected when coderd removed its agent does not bring it back.
func TestRelayOfARemovedAgent(t *testing.T) {
	_, coderd := startCoderd(t)
	reg := registrations(1)[0]
	id := uuid.UUID(reg.GetId())
	states := make(chan client.State, 1000)
	agent, err := coderd.Relay(id, client.AgentOptions{Registration: reg, OnState: func(s client.State) { states <- s }})
	require.NoError(t, err)
	_, err = coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{reg}, nil)
	require.NoError(t, err)
	_, err = coderd.Deregister(t.Context(), []uuid.UUID{id}, nil)
	require.NoError(t, err)
	stop := run(t.Context(), agent.Run)
	require.ErrorContains(t, awaitState(states, client.Waiting).Err, "it was removed since")
	require.Zero(t, listed(t, coderd))
	require.NoError(t, stop())
}

// A relay whose stream is refused, as coderd's token was, registers once the token is
// right.
func TestRelayRegistersAfterARefusedToken(t *testing.T) {
	s, _ := startCoderd(t)
	var mu sync.Mutex
	token := "wrong"
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true}, grpc.WithContextDialer(s.dial),
		grpc.WithPerRPCCredentials(tokenFunc(func() string {
			mu.Lock()
			defer mu.Unlock()
			return token
		})))
	require.NoError(t, err)
	defer closeConn(t, conn)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	states, stop := relayedStates(t, coderd, registrations(1)[0])
	require.Equal(t, codes.Unauthenticated, status.Code(awaitState(states, client.Waiting).Err))
	mu.Lock()
	token = coderdToken
	mu.Unlock()
	awaitState(states, client.Connected)
	require.NoError(t, stop())
}

// tokenFunc returns the token of a call.
type tokenFunc func() string

func (f tokenFunc) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": fmt.Sprint("Bearer ", f())}, nil
}

func (tokenFunc) RequireTransportSecurity() bool { return false }

// lineWriter gets the lines of a log, as many as fit.
type lineWriter chan string

func (w lineWriter) Write(line []byte) (int, error) {
	select {
	case w <- string(line):
	default:
	}
	return len(line), nil
}

// What an unknown agent says over a connection with its registration arrives. A
// registration that is mended takes the place of one that was refused.
func TestRelaysRegister(t *testing.T) {
	_, coderd := startCoderd(t)
	logged := make(lineWriter, 100)
	relays, err := coderd.Relays(client.RelaysOptions{
		Backoff: client.Backoff{Min: time.Millisecond, Max: time.Millisecond}, Logger: slog.New(slog.NewTextHandler(logged, nil)),
	})
	require.NoError(t, err)
	good := registrations(1)[0]
	bad := proto.CloneOf(good)
	bad.Name = ""
	first, err := relays.ConnectRegistered(bad, "agent")
	require.NoError(t, err)
	first.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
	for line := ""; !strings.Contains(line, "the registration is refused: name"); {
		line = <-logged
	}
	require.Zero(t, listed(t, coderd))
	first.Disconnect()
	second, err := relays.ConnectRegistered(good, "agent")
	require.NoError(t, err)
	defer second.Disconnect()
	closing, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	require.NoError(t, relays.Close(closing))
	require.Equal(t, 1, listed(t, coderd))

	_, err = relays.ConnectRegistered(&agentstatsv1.AgentRegistration{}, "agent")
	require.EqualError(t, err, "relay an agent: registration: id: want 16 bytes, got 0")
}
