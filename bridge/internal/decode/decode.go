// Package decode reads a copy of the bytes that a workspace agent and coderd exchange on
// one connection: WebSocket frames, of them yamux frames, of them dRPC packets. Of these it
// keeps the few calls that are relayed. All else is skipped by its length.
//
// Nothing here blocks, starts a goroutine or logs. Errors have none of the bytes.
package decode

import (
	"fmt"
	"sync/atomic"

	"github.com/google/uuid"
)

// The calls of an agent that a Handler gets.
const (
	CallStats      = "/coder.agent.v2.Agent/UpdateStats"
	CallLifecycle  = "/coder.agent.v2.Agent/UpdateLifecycle"
	CallAppHealths = "/coder.agent.v2.Agent/BatchUpdateAppHealths"
	CallMetadata   = "/coder.agent.v2.Agent/BatchUpdateMetadata"
	CallCoordinate = "/coder.tailnet.v2.Tailnet/Coordinate"
)

// Reason is why decoding ended, as the label of a metric.
type Reason string

// The reasons of this package.
const (
	// ReasonWebSocket is that of frames that a WebSocket without extensions cannot have.
	ReasonWebSocket Reason = "websocket"
	// ReasonYamux is that of frames that are not yamux's.
	ReasonYamux Reason = "yamux"
	// ReasonDRPC is that of frames that are not dRPC's.
	ReasonDRPC Reason = "drpc"
	// ReasonReused is that of a second invoke on a stream, and of the id of an earlier stream.
	ReasonReused Reason = "stream_reused"
	// ReasonMessage is that of a message that is no protobuf, or has too large fields.
	ReasonMessage Reason = "message"
	// ReasonStreams is that of too many streams at once.
	ReasonStreams Reason = "streams"
	// ReasonManifest is that of too many calls before the manifest.
	ReasonManifest Reason = "no_manifest"
	// ReasonIdentity is that of a second manifest, which is another agent's.
	ReasonIdentity Reason = "identity"
	// ReasonMemory is that of too much memory in all.
	ReasonMemory Reason = "memory"
)

// Error is why decoding ended.
type Error struct {
	Reason Reason
	text   string
}

// Error implements error.
func (e *Error) Error() string { return e.text }

// NewError returns an Error. Its text must have nothing of what was passed on.
func NewError(reason Reason, format string, args ...any) error {
	return &Error{Reason: reason, text: fmt.Sprintf(format, args...)}
}

// App is one of an agent's apps, as the manifest has it.
type App struct {
	ID     uuid.UUID
	Health int32 // as agentstats.v1 numbers it
}

// Manifest is what of coderd's answer says who the agent is. Environment, scripts and
// secrets were skipped.
type Manifest struct {
	AgentID, WorkspaceID                    uuid.UUID
	AgentName, WorkspaceName, OwnerUsername string
	Apps                                    []App
}

// Handler gets what is decoded of one connection. Its methods are called by Connection.Read.
type Handler interface {
	// Manifest is called once, before the others. The handler owns m.
	Manifest(m *Manifest)
	// Call is called with each relayed call that coderd answered without an error, in the
	// order of the answers. Of CallCoordinate it is called with each request: coderd answers
	// none. The request is valid until it returns.
	Call(call string, request []byte)
	// Regions is called with the names of the DERP regions. The handler owns names.
	Regions(names map[int64]string)
}

// Budget bounds the memory of many connections. It may be shared by goroutines.
type Budget struct {
	max  int64
	used atomic.Int64
}

// NewBudget returns a budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{max: bytes} }

// fairBytes are more than a connection has at once that sends a usual report.
const fairBytes = 64 << 10

// Reserve takes bytes of the budget for who has so many of it; false: there are not as many.
// The last half is for those who have little, so that nobody takes all from the others.
func (b *Budget) Reserve(bytes, has int) bool {
	limit := b.max
	if has+bytes > fairBytes {
		limit /= 2
	}
	if b.used.Add(int64(bytes)) > limit {
		b.used.Add(-int64(bytes))
		return false
	}
	return true
}

// Release gives bytes back.
func (b *Budget) Release(bytes int) { b.used.Add(-int64(bytes)) }

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// share is what a connection has of a budget. One goroutine at a time may use it.
type share struct {
	of  *Budget
	has int
}

func (s *share) reserve(bytes int) bool {
	if !s.of.Reserve(bytes, s.has) {
		return false
	}
	s.has += bytes
	return true
}

func (s *share) release(bytes int) {
	s.has -= bytes
	s.of.Release(bytes)
}

// Bounds of what one connection may have in memory.
const (
	// maxRequest bounds a request that is kept. A report of 85 samples has 3 kB.
	maxRequest = 1 << 20
	// maxPendingBytes and maxPendingCalls bound the calls that wait for the manifest, which an
	// agent asks for first of all.
	maxPendingBytes = 256 << 10
	maxPendingCalls = 64
	// connectionBytes is about what a connection takes beside its streams: its directions,
	// its Copy and its handler.
	connectionBytes = 2 << 10
	// streamBytes is what a stream takes beside its request.
	streamBytes = 512
	// walkerBytes is what a message takes that is read, and what is kept of it.
	walkerBytes = 4 << 10
)

var errMemory = NewError(ReasonMemory, "the memory of all decoders is used up")

// Connection decodes one connection of an agent. One goroutine at a time may use it.
type Connection struct {
	handler Handler
	budget  *share
	agent   side // what the agent sends
	coderd  side
	streams streams

	agentID uuid.UUID // zero: not known yet
	// pending calls wait for the manifest, and so do the newest regions.
	pending      []pendingCall
	pendingBytes int
	regions      map[int64]string
	skipped      int // requests that were too large to be kept
	closed       bool
}

type pendingCall struct {
	call    string
	request *buffer
}

// NewConnection returns a Connection whose memory is taken of the budget. Close it. An error
// says that there is not enough.
func NewConnection(handler Handler, budget *Budget) (*Connection, error) {
	of := &share{of: budget}
	if !of.reserve(connectionBytes) {
		return nil, errMemory
	}
	c := &Connection{handler: handler, budget: of}
	c.agent.fromAgent = true
	return c, nil
}

// Read decodes what follows in one direction. It changes b, and keeps nothing of it. What
// the agent sends has to be read before coderd's answer to it. After an error there is
// nothing to decode any more.
func (c *Connection) Read(fromAgent bool, b []byte) error {
	if fromAgent {
		return c.agent.read(c, b)
	}
	return c.coderd.read(c, b)
}

// Skipped returns how many requests were too large to be kept.
func (c *Connection) Skipped() int { return c.skipped }

// Close gives back the connection's memory. It is safe to repeat.
func (c *Connection) Close() {
	if c.closed {
		return
	}
	c.closed = true
	for _, s := range c.streams.open {
		c.forget(s)
		c.budget.release(streamBytes)
	}
	c.streams.open = nil
	for _, p := range c.pending {
		p.request.free(c.budget)
	}
	c.pending, c.regions = nil, nil
	c.budget.release(connectionBytes)
}

// accept hands over a call that coderd accepted, or has it wait for the manifest. It takes
// over the request.
func (c *Connection) accept(call string, request *buffer) error {
	if c.agentID != uuid.Nil {
		c.handler.Call(call, request.b)
		request.free(c.budget)
		return nil
	}
	c.pending = append(c.pending, pendingCall{call, request})
	c.pendingBytes += len(request.b)
	if len(c.pending) > maxPendingCalls || c.pendingBytes > maxPendingBytes {
		return NewError(ReasonManifest, "%d calls of %d bytes came before the manifest: want at most %d of %d bytes",
			len(c.pending), c.pendingBytes, maxPendingCalls, maxPendingBytes)
	}
	return nil
}

// identify handles a manifest. The first one says who the agent is.
func (c *Connection) identify(m *Manifest) error {
	switch {
	case m.AgentID == uuid.Nil:
		return NewError(ReasonMessage, "the manifest has no id of the agent")
	case c.agentID == uuid.Nil:
	case c.agentID != m.AgentID:
		return NewError(ReasonIdentity, "a second manifest is of another agent")
	default:
		return nil
	}
	c.agentID = m.AgentID
	c.handler.Manifest(m)
	c.setRegions(c.regions)
	c.regions = nil
	for _, p := range c.pending {
		c.handler.Call(p.call, p.request.b)
		p.request.free(c.budget)
	}
	c.pending, c.pendingBytes = nil, 0
	return nil
}

// setRegions hands over the names of regions, or has them wait for the manifest; nil: there
// are none.
func (c *Connection) setRegions(names map[int64]string) {
	switch {
	case names == nil:
	case c.agentID == uuid.Nil:
		c.regions = names
	default:
		c.handler.Regions(names)
	}
}
