package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxRelayedSessions of one stream are as many as the service allows by default.
	maxRelayedSessions = 2000
	// A stream has spreadSessions before there is another one, up to spreadStreams: where
	// the connection balances, they are on several replicas. Fewer streams have fuller
	// messages.
	spreadSessions = 250
	spreadStreams  = 8
	// gatherTime is how long a request waits for those of other agents, unless it is
	// urgent: a tenth of what an Agent waits for what else is due to itself.
	gatherTime = 100 * time.Millisecond
	// relayRequestBytes of encoded requests wait for the stream. Who has more to send
	// waits. With the largest request of an agent that is below the limit of a message.
	relayRequestBytes = 64 << 10
	// reasonDraining is that of a please-reconnect of a replica that stops.
	reasonDraining = "draining"
)

var errRelayEnded = status.Error(codes.Unavailable, "the service ended the stream that relays")

// relays are the streams that the relayed agents of a Coderd share.
type relays struct {
	service agentstatsv1.AgentServiceClient

	mu      sync.Mutex
	streams []*relayStream // guarded by mu; those that take sessions, and some that have ended
}

// relayConn is what the sessions of a relayed agent run over.
type relayConn struct {
	relays *relays
	agent  uuid.UUID
}

// Invoke implements grpc.ClientConnInterface.
func (c *relayConn) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return status.Errorf(codes.Unimplemented, "call %s: a relayed agent has no such call", method)
}

// NewStream implements grpc.ClientConnInterface.
func (c *relayConn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != agentstatsv1.AgentService_Connect_FullMethodName {
		return nil, status.Errorf(codes.Unimplemented, "call %s: a relayed agent has no such call", method)
	}
	s := newRelayedSession(ctx, c.relays.reserve(), c.agent)
	context.AfterFunc(ctx, s.abandon)
	return s, nil
}

// reserve returns the stream for a new session, which counts it.
func (r *relays) reserve() *relayStream {
	r.mu.Lock()
	defer r.mu.Unlock()
	var least *relayStream
	fewest := maxRelayedSessions
	streams := r.streams[:0]
	for _, s := range r.streams {
		n, open := s.load()
		if !open {
			continue
		}
		streams = append(streams, s)
		if n < fewest {
			least, fewest = s, n
		}
	}
	clear(r.streams[len(streams):])
	r.streams = streams
	if least != nil && (fewest < spreadSessions || len(streams) >= spreadStreams) && least.reserve() {
		return least
	}
	s := newRelayStream()
	s.reserve()
	r.streams = append(r.streams, s)
	go s.run(r.service)
	return s
}

// relayStream is one stream of RelayAgents. One goroutine receives, and gives each response
// to its session; another one sends what is queued.
type relayStream struct {
	ctx    context.Context // of the stream
	cancel context.CancelFunc
	ready  chan struct{} // signalled when there is something to send
	urgent chan struct{} // signalled when it is to be sent at once

	mu sync.Mutex
	// Guarded by mu, as are the sessions' fields.

	encoded  []byte        // requests to send, as fields of one message
	taken    chan struct{} // closed when they were taken; nil: nobody waits for that
	newest   uint32        // index of the newest session
	sessions map[uint32]*relayedSession
	open     int // sessions, from their reservation to their end
	live     int // those of them that are used
	// draining: its replica stops. leaving: no session is live, so it is to end.
	draining, leaving bool
	leaveTimer        *time.Timer
	err               error // nil: it has not ended
}

func newRelayStream() *relayStream {
	s := &relayStream{ready: make(chan struct{}, 1), urgent: make(chan struct{}, 1), sessions: make(map[uint32]*relayedSession)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// load returns how many sessions are open, and whether there may be more.
func (s *relayStream) load() (n int, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.openLocked()
}

func (s *relayStream) openLocked() bool { return s.err == nil && !s.draining && !s.leaving }

// reserve counts a new session; false: there may be none any more.
func (s *relayStream) reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.openLocked() {
		return false
	}
	s.open++
	s.live++
	return true
}

// run runs the stream until its end.
func (s *relayStream) run(service agentstatsv1.AgentServiceClient) {
	defer s.cancel()
	stream, err := service.RelayAgents(s.ctx)
	if err != nil {
		s.end(err)
		return
	}
	var sending sync.WaitGroup
	sending.Go(func() { s.send(stream) })
	for {
		m, err := stream.Recv()
		if err != nil {
			s.end(err)
			break
		}
		for _, response := range m.GetResponses() {
			s.handle(response)
		}
	}
	s.cancel()
	sending.Wait()
}

// send sends what is queued, all of it in one message, until the stream ends or no session
// is left.
func (s *relayStream) send(stream agentstatsv1.AgentService_RelayAgentsClient) {
	for {
		select {
		case <-s.ready:
		case <-s.ctx.Done():
			return
		}
		gathered := time.NewTimer(gatherTime)
		select {
		case <-gathered.C:
		case <-s.urgent:
		case <-s.ctx.Done():
		}
		gathered.Stop()
		encoded, last := s.take()
		if len(encoded) > 0 {
			// What is encoded is written as it is.
			m := &agentstatsv1.RelayAgentsRequest{}
			m.ProtoReflect().SetUnknown(encoded)
			if stream.Send(m) != nil {
				return // Recv returns why
			}
		}
		if last {
			_ = stream.CloseSend() // always nil
			return
		}
	}
}

// take returns what is queued. last: nothing follows.
func (s *relayStream) take() (encoded []byte, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	encoded, s.encoded = s.encoded, nil
	s.takenLocked()
	return encoded, s.leaving && s.open == 0
}

func (s *relayStream) takenLocked() {
	if s.taken != nil {
		close(s.taken)
		s.taken = nil
	}
}

// queueLocked queues an encoded request. One that is not urgent waits for others.
func (s *relayStream) queueLocked(encoded []byte, urgent bool) {
	s.encoded = append(s.encoded, encoded...)
	signal(s.ready)
	if urgent || len(s.encoded) >= relayRequestBytes {
		signal(s.urgent)
	}
}

// handle takes in a response. It does not wait for the agent.
func (s *relayStream) handle(response *agentstatsv1.RelayedResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if response.GetResponse().GetReconnect().GetReason() == reasonDraining {
		s.draining = true
	}
	session := s.sessions[response.GetIndex()]
	if session == nil {
		return
	}
	session.handleLocked(response)
	if end := response.GetEnd(); end != nil {
		delete(s.sessions, response.GetIndex())
		session.endLocked(endError(end))
		s.closedLocked()
	}
}

// closedLocked counts a session that is not open any more. The last one ends the stream.
func (s *relayStream) closedLocked() {
	if s.open--; s.open == 0 {
		signal(s.ready)
		signal(s.urgent)
	}
}

// unusedLocked counts a session that is not used any more. If it was the last one, the
// stream is to end: after the ends of all sessions, or when these do not come.
func (s *relayStream) unusedLocked() {
	if s.live--; s.live == 0 && s.err == nil {
		s.leaving = true
		s.leaveTimer = time.AfterFunc(lastAcksTimeout, s.cancel)
	}
}

// end ends all sessions.
func (s *relayStream) end(err error) {
	if errors.Is(err, io.EOF) {
		err = errRelayEnded
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	for _, session := range s.sessions {
		session.endLocked(err)
	}
	clear(s.sessions)
	s.encoded = nil
	s.takenLocked()
	if s.leaveTimer != nil {
		s.leaveTimer.Stop()
	}
}
