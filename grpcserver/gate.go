package grpcserver

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/coder/agentstatsd/agent"
)

// AgentStream is an agent's stream, as the server ends it.
type AgentStream interface {
	// AskToReconnect asks the agent to connect again elsewhere or later. It does
	// not block.
	AskToReconnect()
	// CloseStream ends the stream with the status err. It may block while the agent
	// does not read.
	CloseStream(err error)
	// ReceivedMessage reports whether a message came since its last call.
	ReceivedMessage() bool
}

// admitted is an agent's stream that the gate has let in.
type admitted struct {
	stream AgentStream
	ender  StreamEnder
	// checked is false for a session that coderd relays.
	checked bool
	// silent counts the checks without a message between them.
	silent int
}

// Admit lets in an agent's stream, whose context is ctx. The server asks it to
// connect again before it stops, and ends it when the agent sends nothing. The
// caller calls release at its end; box counts its responses. The error is a status.
func (s *Server) Admit(ctx context.Context, stream AgentStream, box *Outbox) (release func(), err error) {
	ender, err := EnderOf(ctx)
	if err != nil {
		return nil, err
	}
	who := CallerFrom(ctx)
	a := &admitted{stream: stream, ender: ender, checked: true}
	if !s.streams.addAgent(a) {
		return nil, ErrDraining
	}
	return func() {
		s.unread.add(ctx, who, box)
		s.streams.removeAgent(a)
	}, nil
}

// AdmitRelayed lets in a session of the agent that coderd relays, as Admit does a
// stream. It is not ended when the agent sends nothing: coderd knows when it has gone.
func (s *Server) AdmitRelayed(id agent.ID, stream AgentStream) (release func(), err error) {
	if err := s.acquireStream(id); err != nil {
		return nil, err
	}
	a := &admitted{stream: stream}
	if !s.streams.addAgent(a) {
		s.agentStreams.release(id)
		return nil, ErrDraining
	}
	return func() {
		s.streams.removeAgent(a)
		s.agentStreams.release(id)
	}, nil
}

// BeginStream lets in a stream of coderd's, which ends soon once Draining is
// closed. The caller calls EndStream at its end. The error is a status.
func (s *Server) BeginStream() error {
	if !s.streams.add() {
		return ErrDraining
	}
	return nil
}

// EndStream removes a stream that BeginStream let in.
func (s *Server) EndStream() { s.streams.remove() }

// Draining is closed when streams should end soon.
func (s *Server) Draining() <-chan struct{} { return s.streams.draining }

// Stopping is closed when streams must end.
func (s *Server) Stopping() <-chan struct{} { return s.streams.stopping }

// gate counts the streams that must end before the server can stop.
type gate struct {
	// draining is closed when streams should end soon, stopping when they must.
	draining, stopping chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	closed bool
	// away is closed when agents may come again that were sent away; nil: they may.
	away   chan struct{}
	open   int
	empty  chan struct{}
	agents map[*admitted]struct{} // open streams of agents
}

func newGate() *gate {
	return &gate{
		draining: make(chan struct{}),
		stopping: make(chan struct{}),
		empty:    make(chan struct{}),
		agents:   make(map[*admitted]struct{}),
	}
}

// add returns false if no more streams may begin.
func (g *gate) add() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.addLocked()
}

func (g *gate) addLocked() bool {
	if g.closed {
		return false
	}
	g.open++
	return true
}

// addAgent is add for an agent's stream.
func (g *gate) addAgent(a *admitted) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.away != nil || !g.addLocked() {
		return false
	}
	g.agents[a] = struct{}{}
	return true
}

// removeAgent is remove for an agent's stream.
func (g *gate) removeAgent(a *admitted) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.agents, a)
	g.removeLocked()
}

// allAgents returns the open streams of agents, in any order.
func (g *gate) allAgents() []*admitted {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.agents))
}

// sendAway lets no more agents in. It returns their open streams, and what is closed when
// agents may come again or the server stops; nil: they are sent away already.
func (g *gate) sendAway() (agents []*admitted, again <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.away != nil {
		return nil, nil
	}
	g.away = make(chan struct{})
	return slices.Collect(maps.Keys(g.agents)), g.away
}

// letCome ends sendAway.
func (g *gate) letCome() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.letComeLocked()
}

func (g *gate) letComeLocked() {
	if g.away != nil {
		close(g.away)
		g.away = nil
	}
}

// isAway reports whether agents are sent away.
func (g *gate) isAway() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.away != nil
}

func (g *gate) remove() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeLocked()
}

func (g *gate) removeLocked() {
	g.open--
	if g.closed && g.open == 0 {
		close(g.empty)
	}
}

// drain lets nobody in and returns a channel that is closed when all streams have
// ended.
func (g *gate) drain() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.letComeLocked()
	close(g.draining)
	if g.open == 0 {
		close(g.empty)
	}
	return g.empty
}

func (g *gate) stop() { close(g.stopping) }
