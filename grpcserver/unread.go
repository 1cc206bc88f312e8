package grpcserver

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/coder/agentstatsd/agent"
)

// Outbox counts the responses of a stream that gRPC has and did not write yet. A
// stream that ended stays in gRPC's memory until they are written, with up to 64 KB
// of them. A peer without room in its window keeps it there for as long as its
// connection lives. gRPC has no callback for that, so the buffers of the responses
// count.
type Outbox struct{ unwritten atomic.Int64 }

// CountedResponse is a response that is counted.
type CountedResponse struct {
	Message any
	Box     *Outbox
}

// Encoded is a response that is encoded already. Nobody may change it any more.
type Encoded []byte

// MarshalMessage encodes the response.
func (o *CountedResponse) MarshalMessage() (mem.BufferSlice, error) {
	if encoded, ok := o.Message.(Encoded); ok {
		return mem.BufferSlice{newOutBuffer(encoded, o.Box)}, nil
	}
	data, err := protoCodec.Marshal(o.Message)
	if err != nil {
		return nil, err
	}
	defer data.Free()
	return mem.BufferSlice{newOutBuffer(data.Materialize(), o.Box)}, nil
}

var protoCodec = encoding.GetCodecV2("proto")

// CountedBuffer is an encoded response. gRPC frees it once it is written, or the
// stream was reset; if the connection closes before, it does not.
type CountedBuffer struct {
	mem.SliceBuffer
	refs atomic.Int32
	box  *Outbox
}

func newOutBuffer(data []byte, box *Outbox) *CountedBuffer {
	b := new(CountedBuffer)
	b.Init(data, box)
	return b
}

// Init gives the buffer its data, which box counts until it is freed.
func (b *CountedBuffer) Init(data []byte, box *Outbox) {
	b.SliceBuffer, b.box = data, box
	b.refs.Store(1)
	box.unwritten.Add(1)
}

// Ref implements mem.Buffer.
func (b *CountedBuffer) Ref() { b.refs.Add(1) }

// Free implements mem.Buffer.
func (b *CountedBuffer) Free() {
	if b.refs.Add(-1) == 0 {
		b.box.unwritten.Add(-1)
	}
}

// unreadStream is a stream that ended with responses that are not written yet.
type unreadStream struct {
	box  *Outbox
	conn *peerConn
}

// unreadStreams bounds the streams of each agent, and of coderd, that ended and are not
// written.
type unreadStreams struct {
	connections *connections
	limited     prometheus.Counter // streams refused, and connections closed

	mu sync.Mutex
	// Guarded by mu.
	limit       int // of an agent
	coderdLimit int
	streams     map[agent.ID][]unreadStream // those of coderd are of no agent
}

func newUnreadStreams(limit, coderdLimit int, c *connections, limited prometheus.Counter) *unreadStreams {
	return &unreadStreams{limit: limit, coderdLimit: coderdLimit, connections: c, limited: limited, streams: make(map[agent.ID][]unreadStream)}
}

// add notes that a stream of the caller ended.
func (u *unreadStreams) add(ctx context.Context, who Caller, box *Outbox) {
	if box.unwritten.Load() == 0 {
		return
	}
	conn := u.connections.of(ctx)
	if conn == nil {
		return // it is closed
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams[who.Agent] = append(u.streams[who.Agent], unreadStream{box, conn})
}

// admit returns false if the agent may have no new stream. Connections of the
// agent's own that have too many ended streams unread are closed before.
func (u *unreadStreams) admit(id agent.ID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.pruneLocked(id)
	if len(u.streams[id]) < u.limit {
		return true
	}
	for _, s := range u.streams[id] {
		if !u.connections.isShared(s.conn) && !s.conn.closed() {
			u.limited.Inc() // before anybody can see it closed
			_ = s.conn.conn.Close()
		}
	}
	u.pruneLocked(id)
	if len(u.streams[id]) < u.limit {
		return true
	}
	u.limited.Inc()
	return false
}

// admitCoderd returns false if coderd may have no new stream of responses. The
// connection that has the most ended streams unread is closed before: its peer
// reads nothing, or is lost.
func (u *unreadStreams) admitCoderd() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	none := agent.ID{}
	u.pruneLocked(none)
	if len(u.streams[none]) < u.coderdLimit {
		return true
	}
	counts := make(map[*peerConn]int)
	worst := u.streams[none][0].conn
	for _, s := range u.streams[none] {
		if counts[s.conn]++; counts[s.conn] > counts[worst] {
			worst = s.conn
		}
	}
	u.limited.Inc() // before anybody can see it closed
	_ = worst.conn.Close()
	u.pruneLocked(none)
	return len(u.streams[none]) < u.coderdLimit
}

// prune forgets the streams that were written or whose connection is closed.
func (u *unreadStreams) prune() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id := range u.streams {
		u.pruneLocked(id)
	}
}

func (u *unreadStreams) pruneLocked(id agent.ID) {
	left := slices.DeleteFunc(u.streams[id], func(s unreadStream) bool {
		return s.box.unwritten.Load() == 0 || s.conn.closed()
	})
	if len(left) == 0 {
		delete(u.streams, id)
		return
	}
	u.streams[id] = left
}
