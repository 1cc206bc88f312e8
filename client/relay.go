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
	// maxRelayedSessions bounds the sessions of one stream. It is the service's default
	// limit.
	maxRelayedSessions = 2000
	// A further stream is opened when all have spreadSessions, up to spreadStreams. On
	// a connection that balances calls they reach several replicas. Fewer streams have
	// fuller messages.
	spreadSessions = 250
	spreadStreams  = 8
	// gatherTime is how long a request that is not urgent waits for those of other
	// agents. It is short beside maxWait, which is within one Agent.
	gatherTime = 200 * time.Millisecond
	// relayRequestBytes bounds the encoded requests that wait for the stream, but for
	// the last one. Beyond it senders wait. With the largest request of an agent it is
	// below the limit of a message.
	relayRequestBytes = 64 << 10
	// reasonDraining is the reason of the please-reconnect of a replica that stops.
	reasonDraining = "draining"
)

var errRelayEnded = status.Error(codes.Unavailable, "the service ended the stream that relays")

// relays are the streams that the relayed agents of a Coderd share.
type relays struct {
	service agentstatsv1.AgentServiceClient

	mu      sync.Mutex
	streams []*relayStream // guarded by mu; open ones, and some that have ended
}

// relayConn is the connection of a relayed agent's sessions. Its only call is Connect.
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

// reserve returns the stream for a new session, which is counted there.
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

// relayStream is one stream of RelayAgents. One goroutine receives, and hands each
// response to its session. Another one sends the queued requests.
//
//	open --its replica stops--> draining
//	open, draining --no agent uses a session--> closing
//	closing --all sessions have ended, or after lastAcksTimeout--> ended
//	any --the stream breaks--> ended, with all sessions
//
// Only an open stream gets further sessions.
type relayStream struct {
	ctx    context.Context // of the stream
	cancel context.CancelFunc
	ready  chan struct{} // signalled when there is something to send
	urgent chan struct{} // signalled when that is to be sent at once

	mu sync.Mutex
	// Guarded by mu, as are the sessions' fields.

	encoded  []byte        // requests to send, as fields of one message
	taken    chan struct{} // closed when these are sent; nil: nobody waits for that
	newest   uint32        // index of the newest session
	sessions map[uint32]*relayedSession
	open     int // number of sessions, from their reservation to their end
	live     int // number of those whose agent still uses them
	// draining is true if the replica stops. closing is true if no session is live any
	// more. Then the stream is to end.
	draining, closing bool
	closeTimer        *time.Timer
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

func (s *relayStream) openLocked() bool { return s.err == nil && !s.draining && !s.closing }

// reserve counts a new session. It returns false if there may be no further one.
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

// run opens the stream, and receives and sends until its end.
func (s *relayStream) run(service agentstatsv1.AgentServiceClient) {
	defer s.cancel()
	stream, err := service.RelayAgents(s.ctx)
	if err != nil {
		s.endSessions(err)
		return
	}
	var sending sync.WaitGroup
	sending.Add(1)
	go func() {
		defer sending.Done()
		s.send(stream)
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			s.endSessions(err)
			break
		}
		for _, response := range m.GetResponses() {
			s.handle(response)
		}
	}
	s.cancel()
	sending.Wait()
}

// send sends the queued requests, all in one message, until the stream ends or has no
// session any more.
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
		encoded, last := s.takeEncoded()
		if len(encoded) > 0 {
			// Unknown fields are encoded as they are.
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

// takeEncoded returns and removes the queued requests. last is true if none follow.
func (s *relayStream) takeEncoded() (encoded []byte, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	encoded, s.encoded = s.encoded, nil
	s.takenLocked()
	return encoded, s.closing && s.open == 0
}

func (s *relayStream) takenLocked() {
	if s.taken != nil {
		close(s.taken)
		s.taken = nil
	}
}

// queueLocked queues an encoded request. One that is not urgent waits for gatherTime.
func (s *relayStream) queueLocked(encoded []byte, urgent bool) {
	s.encoded = append(s.encoded, encoded...)
	signal(s.ready)
	if urgent || len(s.encoded) >= relayRequestBytes {
		signal(s.urgent)
	}
}

// handle hands a response to its session. It does not wait for the agent.
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

// closedLocked counts a session that has ended. After the last one the stream ends.
func (s *relayStream) closedLocked() {
	if s.open--; s.open == 0 {
		signal(s.ready)
		signal(s.urgent)
	}
}

// unusedLocked counts a session that its agent does not use any more. After the last
// one the stream ends: once all sessions have ended, or after lastAcksTimeout.
func (s *relayStream) unusedLocked() {
	if s.live--; s.live == 0 && s.err == nil {
		s.closing = true
		s.closeTimer = time.AfterFunc(lastAcksTimeout, s.cancel)
	}
}

// endSessions ends all sessions, as the stream has ended with err.
func (s *relayStream) endSessions(err error) {
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
	if s.closeTimer != nil {
		s.closeTimer.Stop()
	}
}
