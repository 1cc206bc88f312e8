package agentapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// relayedCredit is how many requests a session may have sent without getting credit for
// them.
const relayedCredit = 16

// errNothing is returned by receive if nothing is queued. The worker ends then. The
// next request starts one again.
var errNothing = errors.New("no request is queued")

// relayedSession is an agent's session on a stream that relays. It is the agentStream
// of the session's connection.
//
//	idle --a request or an end is queued--> working --all requests are handled--> idle
//	working --half-closed, refused or cancelled--> ended --the worker returns--> closed
//
// In idle it has no goroutine. In working the worker opens the session first, then handles
// requests in their order. In ended nothing is sent any more. The worker closes the
// connection, and frees what is queued.
type relayedSession struct {
	relay      *relay
	index      uint32
	connection *connection
	ctx        context.Context
	cancel     context.CancelFunc
	release    func()
	opened     bool // the worker has begun to open the session

	mu sync.Mutex
	// Guarded by mu.

	working    bool
	queue      []relayedRequest
	uncredited credit // received requests without credit
	taken      credit // those of uncredited that left the queue
	halfClosed bool
	ended      bool // its end is queued, or its stream has ended
}

// relayedRequest is a request that is queued.
type relayedRequest struct {
	size    int
	buffer  mem.Buffer // if refused is nil
	refused error      // the status of a request that is too large
}

// credit counts requests and their bytes.
type credit struct{ requests, bytes int }

func (c *credit) add(requests, bytes int) { c.requests, c.bytes = c.requests+requests, c.bytes+bytes }

func newRelayedSession(r *relay, index uint32, id agent.ID) *relayedSession {
	s := &relayedSession{relay: r, index: index}
	s.ctx, s.cancel = context.WithCancel(r.ctx)
	s.connection = newConnection(r.service, s, grpcserver.Caller{Agent: id}, true)
	return s
}

// Context implements agentStream.
func (s *relayedSession) Context() context.Context { return s.ctx }

// enqueue queues a request, whose room is reserved. A request beyond the credit ends
// the session.
func (s *relayedSession) enqueue(q relayedRequest) {
	limit := s.relay.service.server.MaxAgentMessageBytes()
	s.mu.Lock()
	excess := s.uncredited.requests == relayedCredit ||
		q.refused == nil && s.uncredited.requests > 0 && s.uncredited.bytes+q.size > limit
	if drop := excess || s.ended || s.halfClosed; drop {
		ignored := s.ended
		s.mu.Unlock()
		s.drop(q)
		if !ignored {
			s.refuse(excess, limit)
		}
		return
	}
	s.uncredited.add(1, q.size)
	s.queue = append(s.queue, q)
	s.wakeLocked()
	s.mu.Unlock()
}

// refuse ends a session that got a request beyond its credit, or after its end.
func (s *relayedSession) refuse(excess bool, limit int) {
	err := grpcserver.Invalid("request", "want none after end")
	if excess {
		s.relay.service.metrics.relayRefused.WithLabelValues(refusedCredit).Inc()
		err = grpcserver.Exhausted(relayRetry, fmt.Sprintf("want at most %d requests of a session without credit, together of at most %d bytes (%s)",
			relayedCredit, limit, grpcserver.FlagAgentMessageBytes))
	}
	s.relay.service.noteEnd(s.connection.who.Agent, err)
	s.endSession(status.Convert(err))
}

// halfClose ends the session once all queued requests are handled.
func (s *relayedSession) halfClose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halfClosed = true
	s.wakeLocked()
}

// wake starts the worker, which closes the session if it has ended.
func (s *relayedSession) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked()
}

func (s *relayedSession) wakeLocked() {
	if !s.working {
		s.working = true
		go s.work()
	}
}

// work handles the queued requests, and closes the session at its end.
func (s *relayedSession) work() {
	defer func() {
		if p := recover(); p != nil {
			s.endSession(status.Convert(s.relay.service.server.Recovered(p)))
			s.close()
		}
	}()
	err := s.handleQueued()
	if errors.Is(err, errNothing) {
		return
	}
	s.relay.service.noteEndOf(s.connection.who.Agent, s.connection.version, s.connection.awaitEnd(err))
	s.close()
}

// handleQueued handles the queued requests. It returns errNothing if the session goes
// on, else the error of serve.
func (s *relayedSession) handleQueued() error {
	if !s.opened {
		s.opened = true
		if err := s.connection.open(); err != nil {
			return err
		}
	}
	return s.connection.handleAll()
}

// close closes the session. Its worker does not run again.
func (s *relayedSession) close() {
	s.connection.close()
	s.release()
	s.cancel()
	s.mu.Lock()
	queue := s.queue
	s.queue, s.ended = nil, true
	s.mu.Unlock()
	for _, q := range queue {
		s.drop(q)
	}
	s.relay.remove(s.index)
	s.relay.service.metrics.relayedSessions.Dec()
	s.relay.open.Done()
}

// drop frees a request that is not handled.
func (s *relayedSession) drop(q relayedRequest) {
	if q.buffer != nil {
		q.buffer.Free()
		s.relay.releaseRoom(q.size)
	}
}

// receive implements agentStream. It returns errNothing instead of waiting.
func (s *relayedSession) receive(f *wire.Frame) error {
	q, credit, err := s.next()
	if err != nil {
		return err
	}
	if credit > 0 {
		if err := s.sendCredit(credit); err != nil {
			s.drop(q)
			return err
		}
	}
	if q.refused != nil {
		f.Refuse(q.size, q.refused)
		return nil
	}
	s.relay.releaseRoom(q.size)
	f.ReadBuffer(q.buffer)
	return nil
}

// next removes a request from the queue. credit is to be sent at once; 0: none.
func (s *relayedSession) next() (q relayedRequest, credit int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil:
		return q, 0, s.ctx.Err()
	case len(s.queue) > 0:
	case s.halfClosed:
		return q, 0, io.EOF
	default:
		s.working = false
		return q, 0, errNothing
	}
	q = s.queue[0]
	s.queue[0] = relayedRequest{}
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil // an idle session retains none
	}
	s.taken.add(1, q.size)
	if s.taken.requests >= relayedCredit/2 || s.taken.bytes >= s.relay.service.server.MaxAgentMessageBytes()/2 {
		credit = s.takeCreditLocked()
	}
	return q, credit, nil
}

// takeCreditLocked returns the credit that is due, and resets it.
func (s *relayedSession) takeCreditLocked() int {
	n := s.taken.requests
	s.uncredited.add(-n, -s.taken.bytes)
	s.taken = credit{}
	return n
}

// response returns a response with the credit that is due.
func (s *relayedSession) response() wire.RelayedResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.RelayedResponse{Index: s.index, Credit: uint32(s.takeCreditLocked())}
}

func (s *relayedSession) sendCredit(n int) error {
	r := wire.RelayedResponse{Index: s.index, Credit: uint32(n)}
	return s.relay.responses.Append(s.ctx, true, func(b []byte) []byte { return r.Append(b, nil) })
}

// sendAck implements agentStream.
func (s *relayedSession) sendAck(a wire.Ack, urgent bool) error {
	r := s.response()
	return s.relay.responses.Append(s.ctx, urgent, func(b []byte) []byte {
		var ack [wire.MaxAckBytes]byte
		return r.Append(b, a.Append(ack[:0]))
	})
}

// send implements agentStream.
func (s *relayedSession) send(m *agentstatsv1.ConnectResponse) error {
	encoded, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	r := s.response()
	return s.relay.responses.Append(s.ctx, true, func(b []byte) []byte { return r.Append(b, encoded) })
}

// WriteStatus implements agentStream.
func (s *relayedSession) WriteStatus(st *status.Status) error {
	s.endSession(st)
	return nil
}

// endSession queues the session's end, unless it has ended. It does not block.
func (s *relayedSession) endSession(st *status.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	s.cancel() // nothing is sent after the end
	s.relay.responses.AppendEnd(s.index, st, nil, func() { s.relay.remove(s.index) })
	s.wakeLocked()
}

// queuedBytes returns how many bytes are queued.
func (s *relayedSession) queuedBytes() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queue {
		n += q.size
	}
	return n
}
