package agentapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/relayresponses"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Flags that set limits of relaying, as errors name them.
const (
	flagRelayStreams    = "--max-relay-streams"
	flagRelayedSessions = "--max-relayed-sessions"
)

// relayRetry is the retry delay of streams and sessions that a limit refused.
const relayRetry = 10 * time.Second

// A stream whose queue is full is not read. If no queued request is handled for
// slowTimeout, the session with the most queued bytes ends.
const slowTimeout = time.Second

// The queued requests of a stream may take as much as queuedMessages of the largest
// size. When 2,000 agents reconnect they take some 8 MB.
const queuedMessages = 2

type relayStream = grpc.BidiStreamingServer[agentstatsv1.RelayAgentsRequest, agentstatsv1.RelayAgentsResponse]

// relay is a stream of RelayAgents. Its handler reads, and queues each request for the
// agent's session. A session has a goroutine only while it has something to do. One
// more goroutine writes the responses of all sessions.
type relay struct {
	service   *Service
	stream    relayStream
	ctx       context.Context // cancelled at the end of the stream
	cancel    context.CancelFunc
	responses relayresponses.Queue
	newest    uint32         // index of the newest session; only the handler uses it
	open      sync.WaitGroup // sessions that are not closed

	mu sync.Mutex
	// Guarded by mu.

	sessions map[uint32]*relayedSession // that have not ended
	queued   int                        // bytes of queued requests
	takenIn  chan struct{}              // closed when a request leaves its queue; nil: nobody waits for that
}

// RelayAgents implements agentstatsv1.AgentServiceServer.
func (s *Service) RelayAgents(stream relayStream) error {
	if !s.relays.TryAcquire() {
		s.metrics.relayRefused.WithLabelValues(refusedStreams).Inc()
		return grpcserver.Exhausted(relayRetry, fmt.Sprintf("want at most %d streams that relay at once (%s)", s.relays.Limit(), flagRelayStreams))
	}
	defer s.relays.Release()
	s.metrics.relayStreams.Inc()
	defer s.metrics.relayStreams.Dec()
	ender, err := grpcserver.EnderOf(stream.Context())
	if err != nil {
		return err
	}
	r := &relay{service: s, stream: stream, sessions: make(map[uint32]*relayedSession)}
	s.relaying.Store(r, nil)
	defer s.relaying.Delete(r)
	r.ctx, r.cancel = context.WithCancel(stream.Context())
	r.responses.Init()
	var writing sync.WaitGroup
	writing.Go(func() { r.write(ender) })
	defer writing.Wait()
	defer r.endSessions() // also if a panic comes through here
	err = r.read()
	if !errors.Is(err, io.EOF) {
		return err
	}
	r.forAll((*relayedSession).halfClose)
	r.open.Wait()
	r.responses.Close()
	writing.Wait()
	return nil
}

// endSessions ends the open sessions, and the goroutine that writes.
func (r *relay) endSessions() {
	r.cancel()
	r.forAll((*relayedSession).wake)
	r.open.Wait()
}

// read reads requests and queues them. It returns io.EOF when the caller has
// half-closed the stream, or the error with which the stream is to end.
func (r *relay) read() error {
	for {
		var batch wire.RelayBatch
		if err := r.stream.RecvMsg(&batch); err != nil {
			return err
		}
		if err := r.handle(&batch); err != nil {
			return err
		}
	}
}

func (r *relay) handle(batch *wire.RelayBatch) error {
	defer batch.Release()
	for i := 0; ; i++ {
		q, ok, err := batch.Next()
		if err != nil || !ok {
			return err
		}
		if err := r.route(&q); err != nil {
			return grpcserver.Invalid(fmt.Sprintf("requests[%d].%s", i, err.field), "%s", err.problem)
		}
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
	}
}

// fieldError describes an invalid field of a relayed request. It is an error of coderd,
// not of an agent, so it ends the stream.
type fieldError struct{ field, problem string }

// route queues a request for its session, or opens the session.
func (r *relay) route(q *wire.RelayedRequest) *fieldError {
	hello := len(q.AgentID) > 0
	switch {
	case q.HasRequest == q.End:
		return &fieldError{"request", "want either it or end"}
	case hello && q.End:
		return &fieldError{"end", "want none with agent_id"}
	case hello && q.Index <= r.newest:
		return &fieldError{"index", fmt.Sprintf("want one above %d with agent_id, got %d", r.newest, q.Index)}
	case !hello && q.Index == 0:
		return &fieldError{"index", "want one above 0, got 0"}
	case !hello && q.Index > r.newest:
		return &fieldError{"agent_id", fmt.Sprintf("want it with the hello of session %d, which is not open", q.Index)}
	}
	if hello {
		r.newest = q.Index
		r.openSession(q)
		return nil
	}
	r.mu.Lock()
	session := r.sessions[q.Index]
	r.mu.Unlock()
	switch {
	case session == nil: // it has ended, and the caller does not know yet
	case q.End:
		session.halfClose()
	default:
		r.enqueue(session, q.Request, false)
	}
	return nil
}

// openSession opens a session with its hello. If it is refused, its end is sent.
func (r *relay) openSession(q *wire.RelayedRequest) {
	// Refused sessions must not queue responses without a limit.
	if r.responses.AwaitRoom(r.ctx) != nil {
		return
	}
	id, err := r.admitted(q.AgentID)
	if err != nil {
		r.service.noteEnd(id, err)
		r.responses.AppendEnd(q.Index, status.Convert(err), nil, nil)
		return
	}
	session := newRelayedSession(r, q.Index, id)
	release, err := r.service.server.AdmitRelayed(id, session.connection)
	if err != nil {
		session.cancel()
		r.service.noteEnd(id, err)
		var again *agentstatsv1.Reconnect
		if errors.Is(err, grpcserver.ErrDraining) {
			again = reconnect(reconnectDrain)
		}
		r.responses.AppendEnd(q.Index, status.Convert(err), again, nil)
		return
	}
	session.release = release
	r.open.Add(1)
	r.service.metrics.relayedSessions.Inc()
	r.mu.Lock()
	r.sessions[q.Index] = session
	r.mu.Unlock()
	r.enqueue(session, q.Request, true)
}

// admitted returns the agent of a new session, which is zero if it is not valid. The error
// is the status with which the session ends.
func (r *relay) admitted(agentID []byte) (id agent.ID, err error) {
	if len(agentID) != len(id) {
		r.service.metrics.relayRefused.WithLabelValues(refusedAgentID).Inc()
		return id, grpcserver.Invalid("agent_id", "want %d bytes, got %d", len(id), len(agentID))
	}
	id = agent.ID(agentID)
	if most := r.service.opts.Load().MaxRelayedSessions; r.count() >= most {
		r.service.metrics.relayRefused.WithLabelValues(refusedSessions).Inc()
		return id, grpcserver.Exhausted(relayRetry, fmt.Sprintf("want at most %d sessions on a stream that relays (%s)", most, flagRelayedSessions))
	}
	return id, nil
}

// count returns the number of sessions.
func (r *relay) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

// enqueue queues a copy of a request once there is room for it. A copy, so that it does
// not retain the bytes of the whole message.
func (r *relay) enqueue(s *relayedSession, request []byte, hello bool) {
	if err := r.service.server.CheckAgentMessage(len(request), hello); err != nil {
		s.enqueue(relayedRequest{size: len(request), refused: err})
		return
	}
	r.awaitRoom(len(request))
	s.enqueue(relayedRequest{size: len(request), buffer: mem.Copy(request, mem.DefaultBufferPool())})
}

// awaitRoom waits for room for a request of size bytes, and reserves it.
func (r *relay) awaitRoom(size int) {
	most := queuedMessages * r.service.server.Options().MaxMessageBytes
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.queued > 0 && r.queued+size > most && r.ctx.Err() == nil {
		if r.takenIn == nil {
			r.takenIn = make(chan struct{})
		}
		takenIn := r.takenIn
		r.mu.Unlock()
		timer := time.NewTimer(slowTimeout)
		select {
		case <-takenIn:
		case <-timer.C:
			r.endSlowest()
		case <-r.ctx.Done():
		}
		timer.Stop()
		r.mu.Lock()
	}
	r.queued += size
}

// releaseRoom releases the room of a request that left its queue.
func (r *relay) releaseRoom(size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queued -= size
	if r.takenIn != nil {
		close(r.takenIn)
		r.takenIn = nil
	}
}

// endSlowest ends the session with the most queued bytes.
func (r *relay) endSlowest() {
	var slowest *relayedSession
	most := 0
	r.forAll(func(s *relayedSession) {
		if n := s.queuedBytes(); n > most {
			slowest, most = s, n
		}
	})
	if slowest != nil {
		r.service.metrics.relayRefused.WithLabelValues(refusedSlow).Inc()
		slowest.connection.CloseStream(grpcserver.Exhausted(relayRetry, fmt.Sprintf("want requests handled within %v while the queue of the stream is full, %d bytes were not", slowTimeout, most)))
	}
}

// forAll calls f with each session that has not ended.
func (r *relay) forAll(f func(*relayedSession)) {
	r.mu.Lock()
	sessions := slices.Collect(maps.Values(r.sessions))
	r.mu.Unlock()
	for _, s := range sessions {
		f(s)
	}
}

// remove removes a session whose end is queued.
func (r *relay) remove(index uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, index)
}

// isEmpty reports whether all sessions have ended.
func (r *relay) isEmpty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions) == 0
}

// write writes responses until the end of the stream. When the service stops, it ends
// the stream once all sessions have ended.
func (r *relay) write(ender grpcserver.StreamEnder) {
	draining, stopping := r.service.server.Draining(), false
	for {
		select {
		case <-draining:
			draining, stopping = nil, true
		case <-r.responses.Ready():
			r.responses.Gather(r.ctx)
		case <-r.responses.Closed():
		case <-r.ctx.Done():
			r.responses.Discard()
			return
		}
		empty := r.isEmpty() // before the last end is written
		for encoded := r.responses.TakeEncoded(); encoded != nil; encoded = r.responses.TakeEncoded() {
			if err := r.stream.SendMsg(grpcserver.Encoded(encoded)); err != nil {
				_ = ender.WriteStatus(status.Convert(err)) // unless it has ended
			}
		}
		select {
		case <-r.responses.Closed():
			return
		default:
		}
		if stopping && empty {
			_ = ender.WriteStatus(status.Convert(grpcserver.ErrDraining))
			return
		}
	}
}
