package relaystream

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/client/internal/outbox"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// credit bounds the requests that a session may send without credit.
	credit = 16
	// maxResponses bounds the responses of a session that wait for its agent. Of
	// consecutive acks only the newest is kept.
	maxResponses = 256
)

// session is a relayed agent's session. It implements the grpc.ClientStream of
// Connect.
type session struct {
	stream *stream
	agent  uuid.UUID
	ctx    context.Context
	// received is signalled when there is a response, credited when there is credit.
	// done is closed at the end.
	received, credited chan struct{}
	done               chan struct{}

	// Guarded by the stream's mu.

	index      uint32 // 0: the hello is not queued yet
	halfClosed bool
	uncredited []int // sizes in bytes of the requests without credit
	limit      int   // of their bytes; 0: not known yet
	inbox      []*agentstatsv1.ConnectResponse
	err        error // nil: it has not ended
}

func newSession(ctx context.Context, s *stream, agent uuid.UUID) *session {
	return &session{
		stream: s, agent: agent, ctx: ctx,
		received: make(chan struct{}, 1), credited: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// Header implements grpc.ClientStream: there is none.
func (s *session) Header() (metadata.MD, error) { return nil, nil }

// Trailer implements grpc.ClientStream: there is none.
func (s *session) Trailer() metadata.MD { return nil }

// Context implements grpc.ClientStream.
func (s *session) Context() context.Context { return s.ctx }

// CloseSend implements grpc.ClientStream.
func (s *session) CloseSend() error {
	s.stream.mu.Lock()
	defer s.stream.mu.Unlock()
	s.halfCloseLocked()
	return nil
}

func (s *session) halfCloseLocked() {
	if s.halfClosed {
		return
	}
	s.halfClosed = true
	if s.index > 0 && s.stream.sessions[s.index] == s {
		// The message has no text, so it can be encoded.
		encoded, _ := encode(&agentstatsv1.RelayedRequest{Index: s.index, End: true})
		s.stream.queueLocked(encoded, true)
	}
}

// encode returns the request as a field of a message that relays.
func encode(q *agentstatsv1.RelayedRequest) ([]byte, error) {
	return proto.Marshal(&agentstatsv1.RelayAgentsRequest{Requests: []*agentstatsv1.RelayedRequest{q}})
}

// abandon ends the session when its context is cancelled. To the service that is a
// stream that broke.
func (s *session) abandon() {
	s.stream.mu.Lock()
	defer s.stream.mu.Unlock()
	if s.err != nil {
		return
	}
	s.halfCloseLocked()
	s.endLocked(status.FromContextError(s.ctx.Err()).Err())
	if s.index == 0 {
		s.stream.closedLocked()
	}
}

// endLocked ends the session, unless it has ended.
func (s *session) endLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.done)
	s.stream.unusedLocked()
}

// endError returns the error of a stream of Connect that ends like this.
func endError(end *agentstatsv1.RelayedEnd) error {
	if end.GetCode() == uint32(codes.OK) {
		return io.EOF
	}
	st := status.New(codes.Code(end.GetCode()), end.GetMessage())
	if end.GetRetryDelay() != nil {
		if detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: end.GetRetryDelay()}); err == nil {
			st = detailed
		}
	}
	return &EndError{st.Err()}
}

// EndError is why the service ended one session. Why it ended a stream of all of
// them is another error.
type EndError struct{ status error }

// Error implements error.
func (e *EndError) Error() string { return e.status.Error() }

// Unwrap returns an error with the status.
func (e *EndError) Unwrap() error { return e.status }

// handleLocked queues a response for the agent, and adds its credit. It does not handle
// an end.
func (s *session) handleLocked(response *agentstatsv1.RelayedResponse) {
	if n := min(int(response.GetCredit()), len(s.uncredited)); n > 0 {
		s.uncredited = s.uncredited[n:]
		signal(s.credited)
	}
	m := response.GetResponse()
	if m == nil || s.err != nil {
		return
	}
	if limits := m.GetSettings().GetLimits(); limits != nil {
		s.limit = int(limits.GetMessageBytes())
	}
	switch n := len(s.inbox); {
	case n > 0 && isAck(m) && isAck(s.inbox[n-1]):
		s.inbox[n-1] = m
	case n == maxResponses:
		s.halfCloseLocked()
		s.endLocked(status.Errorf(codes.ResourceExhausted, "%d responses wait for the agent", n))
	default:
		s.inbox = append(s.inbox, m)
	}
	signal(s.received)
}

// isAck reports whether the response has nothing but an ack.
func isAck(m *agentstatsv1.ConnectResponse) bool {
	return m.GetSettings() == nil && len(m.GetRefusals()) == 0 && m.GetReconnect() == nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SendMsg implements grpc.ClientStream: it queues a copy of a request. It waits while
// the session has no credit, or the stream much to send. After the end it returns
// io.EOF.
func (s *session) SendMsg(m any) error {
	request, ok := m.(*agentstatsv1.ConnectRequest)
	if !ok {
		return fmt.Errorf("send: want a request of an agent, got %T", m)
	}
	size := proto.Size(request)
	s.stream.mu.Lock()
	defer s.stream.mu.Unlock()
	for {
		wait := s.waitLocked(size)
		if s.endErrorLocked() != nil {
			return io.EOF
		}
		if wait == nil {
			return s.queueLocked(request, size)
		}
		s.stream.mu.Unlock()
		select {
		case <-wait:
		case <-s.done:
		}
		s.stream.mu.Lock()
	}
}

// waitLocked returns a channel that is closed or signalled when a request of size bytes
// may fit; nil: it fits now.
func (s *session) waitLocked(size int) <-chan struct{} {
	bytes := size
	for _, n := range s.uncredited {
		bytes += n
	}
	if n := len(s.uncredited); n == credit || n > 0 && s.limit > 0 && bytes > s.limit {
		return s.credited
	}
	if len(s.stream.encoded) < requestBytes {
		return nil
	}
	if s.stream.taken == nil {
		s.stream.taken = make(chan struct{})
	}
	return s.stream.taken
}

// queueLocked queues a request. The first one carries the agent's id, and opens the
// session.
func (s *session) queueLocked(request *agentstatsv1.ConnectRequest, size int) error {
	q := &agentstatsv1.RelayedRequest{Index: s.index, Request: request}
	if s.index == 0 {
		q.Index, q.AgentId = s.stream.newest+1, s.agent[:]
	}
	encoded, err := encode(q)
	if err != nil {
		return status.Errorf(codes.Internal, "encode the request: %v", err)
	}
	if s.index == 0 {
		s.index, s.stream.newest = q.GetIndex(), q.GetIndex()
		s.stream.sessions[s.index] = s
	}
	s.uncredited = append(s.uncredited, size)
	// A report that could not be sent before must not be older yet when it arrives.
	urgent := request.GetHello() != nil || request.GetAckNow() || request.GetGoodbye() != nil || request.GetStatsAge() > outbox.MaxWait.Microseconds()
	s.stream.queueLocked(encoded, urgent)
	return nil
}

// endErrorLocked returns why the session, or its stream, has ended; nil: it has not.
func (s *session) endErrorLocked() error {
	if s.err == nil && s.stream.err != nil {
		s.endLocked(s.stream.err)
	}
	return s.err
}

// RecvMsg implements grpc.ClientStream.
func (s *session) RecvMsg(m any) error {
	response, ok := m.(*agentstatsv1.ConnectResponse)
	if !ok {
		return fmt.Errorf("receive: want a response to an agent, got %T", m)
	}
	for {
		received, err := s.next()
		if err != nil {
			return err
		}
		if received != nil {
			proto.Merge(response, received)
			return nil
		}
		select {
		case <-s.received:
		case <-s.done:
		}
	}
}

// next returns the next response; nil: there is none yet.
func (s *session) next() (*agentstatsv1.ConnectResponse, error) {
	s.stream.mu.Lock()
	defer s.stream.mu.Unlock()
	if len(s.inbox) == 0 {
		return nil, s.endErrorLocked()
	}
	m := s.inbox[0]
	s.inbox = slices.Delete(s.inbox, 0, 1)
	return m, nil
}
