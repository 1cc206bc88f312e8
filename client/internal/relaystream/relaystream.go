// Package relaystream carries the sessions of many relayed agents on a few streams.
package relaystream

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
	// maxSessions bounds the sessions of one stream. It is the service's default
	// limit.
	maxSessions = 2000
	// A further stream is opened when all have spreadSessions, up to spreadStreams. On
	// a connection that balances calls they reach several replicas. Fewer streams have
	// fuller messages.
	spreadSessions = 250
	spreadStreams  = 8
	// GatherTime is how long a request that is not urgent waits for those of other
	// agents. It is short beside outbox.MaxWait, which is within one agent.
	GatherTime = 200 * time.Millisecond
	// LastAcksTimeout bounds the wait for the last acks of a stream that is to end: what
	// they would cover is sent again otherwise.
	LastAcksTimeout = 5 * time.Second
	// requestBytes bounds the encoded requests that wait for the stream, but for
	// the last one. Beyond it senders wait. With the largest request of an agent it is
	// below the limit of a message.
	requestBytes = 64 << 10
	// reasonDraining is the reason of the please-reconnect of a replica that stops.
	reasonDraining = "draining"
)

var errEnded = status.Error(codes.Unavailable, "the service ended the stream that relays")

// Streams are the streams that the relayed agents of a coderd share. All methods may be
// called at any time by any goroutine.
type Streams struct {
	service agentstatsv1.AgentServiceClient

	mu      sync.Mutex
	streams []*stream // guarded by mu; open ones, and some that have ended
}

// New returns Streams without any. They are opened as sessions need them, and end after
// their last sessions.
func New(service agentstatsv1.AgentServiceClient) *Streams { return &Streams{service: service} }

// Conn returns a connection whose only call is Connect: it opens a session of the agent.
func (r *Streams) Conn(agent uuid.UUID) grpc.ClientConnInterface {
	return &conn{streams: r, agent: agent}
}

// conn is the connection of a relayed agent's sessions.
type conn struct {
	streams *Streams
	agent   uuid.UUID
}

// Invoke implements grpc.ClientConnInterface.
func (c *conn) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	return status.Errorf(codes.Unimplemented, "call %s: a relayed agent has no such call", method)
}

// NewStream implements grpc.ClientConnInterface.
func (c *conn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != agentstatsv1.AgentService_Connect_FullMethodName {
		return nil, status.Errorf(codes.Unimplemented, "call %s: a relayed agent has no such call", method)
	}
	s := newSession(ctx, c.streams.reserve(), c.agent)
	context.AfterFunc(ctx, s.abandon)
	return s, nil
}

// reserve returns the stream for a new session, which is counted there.
func (r *Streams) reserve() *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	var least *stream
	fewest := maxSessions
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
	s := newStream()
	s.reserve()
	r.streams = append(r.streams, s)
	go s.run(r.service)
	return s
}

// stream is one stream of RelayAgents. One goroutine receives, and hands each
// response to its session. Another one sends the queued requests.
//
//	open --its replica stops--> draining
//	open, draining --no agent uses a session--> closing
//	closing --all sessions have ended, or after LastAcksTimeout--> ended
//	any --the stream breaks--> ended, with all sessions
//
// Only an open stream gets further sessions.
type stream struct {
	ctx    context.Context // of the stream
	cancel context.CancelFunc
	ready  chan struct{} // signalled when there is something to send
	urgent chan struct{} // signalled when that is to be sent at once

	mu sync.Mutex
	// Guarded by mu, as are the sessions' fields.

	encoded  []byte        // requests to send, as fields of one message
	taken    chan struct{} // closed when these are sent; nil: nobody waits for that
	newest   uint32        // index of the newest session
	sessions map[uint32]*session
	open     int // number of sessions, from their reservation to their end
	live     int // number of those whose agent still uses them
	// draining is true if the replica stops. closing is true if no session is live any
	// more. Then the stream is to end.
	draining, closing bool
	closeTimer        *time.Timer
	err               error // nil: it has not ended
}

func newStream() *stream {
	s := &stream{ready: make(chan struct{}, 1), urgent: make(chan struct{}, 1), sessions: make(map[uint32]*session)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// load returns how many sessions are open, and whether there may be more.
func (s *stream) load() (n int, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.openLocked()
}

func (s *stream) openLocked() bool { return s.err == nil && !s.draining && !s.closing }

// reserve counts a new session. It returns false if there may be no further one.
func (s *stream) reserve() bool {
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
func (s *stream) run(service agentstatsv1.AgentServiceClient) {
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
func (s *stream) send(stream agentstatsv1.AgentService_RelayAgentsClient) {
	for {
		select {
		case <-s.ready:
		case <-s.ctx.Done():
			return
		}
		gathered := time.NewTimer(GatherTime)
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
func (s *stream) takeEncoded() (encoded []byte, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	encoded, s.encoded = s.encoded, nil
	s.takenLocked()
	return encoded, s.closing && s.open == 0
}

func (s *stream) takenLocked() {
	if s.taken != nil {
		close(s.taken)
		s.taken = nil
	}
}

// queueLocked queues an encoded request. One that is not urgent waits for GatherTime.
func (s *stream) queueLocked(encoded []byte, urgent bool) {
	s.encoded = append(s.encoded, encoded...)
	signal(s.ready)
	if urgent || len(s.encoded) >= requestBytes {
		signal(s.urgent)
	}
}

// handle hands a response to its session. It does not wait for the agent.
func (s *stream) handle(response *agentstatsv1.RelayedResponse) {
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
func (s *stream) closedLocked() {
	if s.open--; s.open == 0 {
		signal(s.ready)
		signal(s.urgent)
	}
}

// unusedLocked counts a session that its agent does not use any more. After the last
// one the stream ends: once all sessions have ended, or after LastAcksTimeout.
func (s *stream) unusedLocked() {
	if s.live--; s.live == 0 && s.err == nil {
		s.closing = true
		s.closeTimer = time.AfterFunc(LastAcksTimeout, s.cancel)
	}
}

// endSessions ends all sessions, as the stream has ended with err.
func (s *stream) endSessions(err error) {
	if errors.Is(err, io.EOF) {
		err = errEnded
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
