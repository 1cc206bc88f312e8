// Package relayresponses has the responses that a stream that relays is to write next.
package relayresponses

import (
	"context"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agentapi/internal/wire"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxBytes bounds the responses that wait for the writer, in bytes. Beyond it
// senders wait. Under load many responses are written at once.
const maxBytes = 64 << 10

// GatherTime is how long an ack that no agent waits for waits for those of other agents.
// Many are due within a short time, each by its own timer. Their deadlines are earlier by
// it than those of agents with their own streams.
const GatherTime = 200 * time.Millisecond

// Queue has the responses that a stream that relays is to write next, encoded as fields of
// one message. An end is added beyond the limit, as whoever ends a session
// must not wait. There is one for each session.
type Queue struct {
	// urgent has an element when the responses must be written at once.
	ready, urgent, closed chan struct{}

	mu sync.Mutex
	// Guarded by mu.

	encoded []byte
	taken   chan struct{} // closed when encoded is written; nil: nobody waits for that
	gone    bool          // nothing is written any more
}

// Init makes an empty queue.
func (q *Queue) Init() {
	q.ready, q.urgent, q.closed = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
}

// Ready has an element when there are responses.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Closed is closed when no more come.
func (q *Queue) Closed() <-chan struct{} { return q.closed }

// Close ends the writer once it has written all.
func (q *Queue) Close() { close(q.closed) }

// Append appends what encode appends, once there is room. The error is that of ctx.
func (q *Queue) Append(ctx context.Context, urgent bool, encode func([]byte) []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.awaitRoomLocked(ctx); err != nil {
		return err
	}
	q.appendLocked(encode, urgent)
	return nil
}

// AwaitRoom waits until there is room. The error is that of ctx.
func (q *Queue) AwaitRoom(ctx context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.awaitRoomLocked(ctx)
}

func (q *Queue) awaitRoomLocked(ctx context.Context) error {
	for len(q.encoded) >= maxBytes && ctx.Err() == nil {
		if q.taken == nil {
			q.taken = make(chan struct{})
		}
		taken := q.taken
		q.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
		}
		q.mu.Lock()
	}
	return ctx.Err()
}

func (q *Queue) appendLocked(encode func([]byte) []byte, urgent bool) {
	if q.gone {
		return
	}
	q.encoded = encode(q.encoded)
	signal(q.ready)
	if urgent || len(q.encoded) >= maxBytes {
		signal(q.urgent)
	}
}

// signal puts an element into a channel of one, unless it has one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Gather waits for GatherTime, or until the responses must be written at once.
func (q *Queue) Gather(ctx context.Context) {
	timer := time.NewTimer(GatherTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-q.urgent:
	case <-q.closed:
	case <-ctx.Done():
	}
}

// TakeEncoded returns and removes all responses, as one encoded message; nil: there are
// none.
func (q *Queue) TakeEncoded() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	encoded := q.encoded
	q.encoded = nil
	select {
	case <-q.urgent: // it is taken
	default:
	}
	if q.taken != nil {
		close(q.taken)
		q.taken = nil
	}
	return encoded
}

// Discard drops all responses, also those that are added later.
func (q *Queue) Discard() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.encoded, q.gone = nil, true
}

// AppendEnd appends the end of a session, with a request to connect again unless that is
// nil. It calls before, if not nil, under the lock:
// what is appended after before returns is written after the end.
func (q *Queue) AppendEnd(index uint32, st *status.Status, reconnect *agentstatsv1.Reconnect, before func()) {
	m := &agentstatsv1.RelayedResponse{Index: index, End: relayedEnd(st)}
	if reconnect != nil {
		m.Response = &agentstatsv1.ConnectResponse{Reconnect: reconnect}
	}
	encoded, err := proto.Marshal(m)
	if err != nil { // a text that is not UTF-8
		encoded, _ = proto.Marshal(&agentstatsv1.RelayedResponse{Index: index, End: &agentstatsv1.RelayedEnd{Code: uint32(codes.Internal)}})
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if before != nil {
		before()
	}
	q.appendLocked(func(b []byte) []byte { return wire.AppendRelayed(b, encoded) }, true)
}

// relayedEnd returns the end of a session with the status of a stream.
func relayedEnd(st *status.Status) *agentstatsv1.RelayedEnd {
	end := &agentstatsv1.RelayedEnd{Code: uint32(st.Code()), Message: st.Message()}
	for _, detail := range st.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			end.RetryDelay = retry.GetRetryDelay()
		}
	}
	return end
}
