package agentapi

import (
	"maps"
	"slices"
	"sync"
)

// gate counts the streams that must end before the server can stop.
type gate struct {
	// draining is closed when streams should end soon, stopping when they must.
	draining, stopping chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	closed bool
	inside int
	empty  chan struct{}
	agents map[*connection]struct{} // those inside
}

func newGate() *gate {
	return &gate{
		draining: make(chan struct{}),
		stopping: make(chan struct{}),
		empty:    make(chan struct{}),
		agents:   make(map[*connection]struct{}),
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
func (g *gate) admit(c *connection) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.enterLocked() {
		return false
	}
	g.agents[c] = struct{}{}
	return true
}

// dismiss is leave for an agent's stream.
func (g *gate) dismiss(c *connection) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.agents, c)
	g.leaveLocked()
}

// connections returns those of the agents inside, in any order.
func (g *gate) connections() []*connection {
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
