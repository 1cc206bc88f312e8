package edgetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// overRelay has the names of the tests that OverRelay was called for.
var overRelay sync.Map

// OverRelay makes the streams of a Service that a test starts sessions of one stream that
// relays.
func OverRelay(t testing.TB) { overRelay.Store(t.Name(), true) }

// IsOverRelay reports whether OverRelay was called for the test.
func IsOverRelay(t testing.TB) bool {
	_, ok := overRelay.Load(t.Name())
	return ok
}

// Relay is a stream that relays, as a caller by the rules has it.
type Relay struct {
	pb.AgentService_RelayAgentsClient

	mu sync.Mutex
	// Guarded by mu.

	changed  *sync.Cond // signalled when a session or the end has changed
	sessions map[uint32]*relayedStream
	newest   uint32
	err      error // of the stream; nil: it has not ended
}

// OpenRelay opens a stream that relays.
func (s *Service) OpenRelay(ctx context.Context) *Relay {
	s.T.Helper()
	stream, err := s.Agents().RelayAgents(ctx)
	require.NoError(s.T, err)
	r := &Relay{AgentService_RelayAgentsClient: stream, sessions: make(map[uint32]*relayedStream)}
	r.changed = sync.NewCond(&r.mu)
	go r.receive()
	return r
}

func (r *Relay) receive() {
	for {
		m, err := r.Recv()
		r.mu.Lock()
		for _, response := range m.GetResponses() {
			if s := r.sessions[response.GetIndex()]; s != nil {
				s.takeLocked(response)
			}
		}
		if err != nil {
			r.err = err
		}
		r.changed.Broadcast()
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// AwaitEnd waits for the end of the stream, and returns its status; nil: OK.
func (r *Relay) AwaitEnd() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.err == nil {
		r.changed.Wait()
	}
	if errors.Is(r.err, io.EOF) {
		return nil
	}
	return r.err
}

// Open opens the stream of an agent, without a hello. It ends with ctx.
func (r *Relay) Open(ctx context.Context, t testing.TB, agent int) *Stream {
	s := &relayedStream{relay: r, agent: agent, ctx: ctx}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s.err == nil {
			s.err = status.FromContextError(ctx.Err()).Err()
			s.endLocked()
		}
		r.changed.Broadcast()
	})
	return &Stream{AgentService_ConnectClient: s, T: t}
}

// Connect opens a session of an agent.
func (r *Relay) Connect(t testing.TB, session Session) *Stream {
	t.Helper()
	return r.Open(t.Context(), t, session.Agent).SayHello(session)
}

// relayedStream is a session on a Relay, as an agent's stream. The relay's mu guards its
// fields.
type relayedStream struct {
	grpc.ClientStream // nil
	relay             *Relay
	agent             int
	ctx               context.Context

	index      uint32 // 0: it has no hello
	halfClosed bool
	uncredited []int // sizes of the requests without credit
	inbox      []*pb.ConnectResponse
	err        error
}

// Context implements grpc.ClientStream.
func (s *relayedStream) Context() context.Context { return s.ctx }

func (s *relayedStream) takeLocked(m *pb.RelayedResponse) {
	s.uncredited = s.uncredited[m.GetCredit():] // panics if it is too much
	if m.GetResponse() != nil {
		s.inbox = append(s.inbox, m.GetResponse())
	}
	if end := m.GetEnd(); end != nil {
		delete(s.relay.sessions, s.index)
		if s.err == nil {
			s.err = endError(end)
		}
	}
}

func endError(end *pb.RelayedEnd) error {
	if end.GetCode() == 0 {
		return io.EOF
	}
	st := status.New(codes.Code(end.GetCode()), end.GetMessage())
	if end.GetRetryDelay() != nil {
		st, _ = st.WithDetails(&errdetails.RetryInfo{RetryDelay: end.GetRetryDelay()})
	}
	return st.Err()
}

// Send sends a request once there is credit for it.
func (s *relayedStream) Send(m *pb.ConnectRequest) error {
	r := s.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(s.uncredited) == 16 && s.endedLocked() == nil {
		r.changed.Wait()
	}
	if s.endedLocked() != nil {
		return io.EOF
	}
	q := &pb.RelayedRequest{Request: m}
	if s.index == 0 {
		r.newest++
		s.index, q.AgentId = r.newest, IDBytes(s.agent)
		r.sessions[s.index] = s
	}
	q.Index = s.index
	s.uncredited = append(s.uncredited, proto.Size(m))
	return r.Send(&pb.RelayAgentsRequest{Requests: []*pb.RelayedRequest{q}})
}

func (s *relayedStream) endedLocked() error {
	if s.err != nil {
		return s.err
	}
	return s.relay.err
}

// Recv receives a response.
func (s *relayedStream) Recv() (*pb.ConnectResponse, error) {
	r := s.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(s.inbox) == 0 && s.endedLocked() == nil {
		r.changed.Wait()
	}
	if len(s.inbox) == 0 {
		return nil, s.endedLocked()
	}
	m := s.inbox[0]
	s.inbox = s.inbox[1:]
	return m, nil
}

// CloseSend ends the session.
func (s *relayedStream) CloseSend() error {
	s.relay.mu.Lock()
	defer s.relay.mu.Unlock()
	s.endLocked()
	return nil
}

func (s *relayedStream) endLocked() {
	if s.index > 0 && !s.halfClosed {
		s.halfClosed = true
		_ = s.relay.Send(&pb.RelayAgentsRequest{Requests: []*pb.RelayedRequest{{Index: s.index, End: true}}})
	}
}

// agentOf returns the number of the agent whose token the calls of ctx have.
func agentOf(ctx context.Context) (n int) {
	md, _ := metadata.FromOutgoingContext(ctx)
	for _, v := range md.Get("authorization") {
		_, _ = fmt.Sscanf(v, "Bearer token of agent %d", &n)
	}
	return n
}
