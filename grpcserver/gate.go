package grpcserver

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// AgentStream is an agent's stream, as the server ends it.
type AgentStream interface {
	// AskToLeave has the agent asked to connect again elsewhere or later. It does not
	// block.
	AskToLeave()
	// Finish ends the stream with the status err. It may block while the agent does not
	// read.
	Finish(err error)
	// Heard tells whether a message came since it was called last.
	Heard() bool
}

// admitted is an agent's stream that the gate has let in.
type admitted struct {
	stream AgentStream
	ender  StreamEnder
	// checked is false for a stream that coderd relays.
	checked bool
	// silent counts the checks without a message between them.
	silent int
}

// Admit lets in an agent's stream, whose context is ctx. The server asks it to leave
// before it stops, and ends it when the agent sends nothing. The caller calls leave at
// its end; box counts its responses. The error is a status.
func (s *Server) Admit(ctx context.Context, stream AgentStream, box *Outbox) (leave func(), err error) {
	ender, err := EnderOf(ctx)
	if err != nil {
		return nil, err
	}
	who := CallerFrom(ctx)
	a := &admitted{stream: stream, ender: ender, checked: who.Token != ""}
	if !s.streams.admit(a) {
		return nil, ErrDraining
	}
	return func() {
		s.unread.add(ctx, who, box)
		s.streams.dismiss(a)
	}, nil
}

// Enter lets in a stream of coderd's, which ends soon once Draining is closed. The
// caller calls Leave at its end. The error is a status.
func (s *Server) Enter() error {
	if !s.streams.enter() {
		return ErrDraining
	}
	return nil
}

// Leave tells that a stream that was let in has ended.
func (s *Server) Leave() { s.streams.leave() }

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
	inside int
	empty  chan struct{}
	agents map[*admitted]struct{} // those inside
}

func newGate() *gate {
	return &gate{
		draining: make(chan struct{}),
		stopping: make(chan struct{}),
		empty:    make(chan struct{}),
		agents:   make(map[*admitted]struct{}),
	}
}

// enter returns false if no more streams may begin.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.enterLocked()
}

func (g *gate) enterLocked() bool {
	if g.closed {
		return false
	}
	g.inside++
	return true
}

// admit is enter for an agent's stream.
func (g *gate) admit(a *admitted) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.enterLocked() {
		return false
	}
	g.agents[a] = struct{}{}
	return true
}

// dismiss is leave for an agent's stream.
func (g *gate) dismiss(a *admitted) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.agents, a)
	g.leaveLocked()
}

// all returns the agents' streams inside, in any order.
func (g *gate) all() []*admitted {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.agents))
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leaveLocked()
}

func (g *gate) leaveLocked() {
	g.inside--
	if g.closed && g.inside == 0 {
		close(g.empty)
	}
}

// drain lets nobody in and returns a channel that is closed when all have left.
func (g *gate) drain() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	close(g.draining)
	if g.inside == 0 {
		close(g.empty)
	}
	return g.empty
}

func (g *gate) stop() { close(g.stopping) }
