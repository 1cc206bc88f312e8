// Package writequeue has what a fleet is to write behind: at most one state and one
// session of each agent, and finished builds.
package writequeue

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/coder/agentstatsd/agent"
)

// Queue has what waits to be written: at most one state and one session of each
// agent, and finished builds of registered workspaces, each once.
type Queue[E comparable, B any] struct {
	// wake has an element while something is queued.
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	states   map[E]struct{}
	sessions map[E]struct{}
	// inFlight are the sessions that are being written.
	inFlight []E
	builds   map[agent.ID]B
	err      error // of the last write; nil: it went well
}

// New makes a queue.
func New[E comparable, B any]() *Queue[E, B] {
	return &Queue[E, B]{
		wake:     make(chan struct{}, 1),
		states:   make(map[E]struct{}),
		sessions: make(map[E]struct{}),
		builds:   make(map[agent.ID]B),
	}
}

// AddState queues the state of an agent.
func (w *Queue[E, B]) AddState(e E) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.states[e] = struct{}{}
	w.wakeWriter()
}

// AddBuild queues a finished build. An earlier result of the same build stays.
func (w *Queue[E, B]) AddBuild(id agent.ID, b B) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, waits := w.builds[id]; !waits {
		w.builds[id] = b
	}
	w.wakeWriter()
}

// RequeueBuilds queues builds again. They replace later results of the same builds.
func (w *Queue[E, B]) RequeueBuilds(builds map[agent.ID]B) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.Copy(w.builds, builds)
}

// DrainBuilds returns and removes all queued builds.
func (w *Queue[E, B]) DrainBuilds() map[agent.ID]B {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.builds) == 0 {
		return nil
	}
	drained := w.builds
	w.builds = make(map[agent.ID]B)
	return drained
}

func (w *Queue[E, B]) wakeWriter() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Wake has an element while something is queued.
func (w *Queue[E, B]) Wake() <-chan struct{} { return w.wake }

// Remove drops what is queued of a removed agent.
func (w *Queue[E, B]) Remove(e E) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.states, e)
	delete(w.sessions, e)
}

// DrainStates returns at most limit queued entries.
func (w *Queue[E, B]) DrainStates(limit int) []E {
	w.mu.Lock()
	defer w.mu.Unlock()
	drained := make([]E, 0, min(limit, len(w.states)))
	for e := range w.states {
		if len(drained) == limit {
			break
		}
		drained = append(drained, e)
		delete(w.states, e)
	}
	return drained
}

// StateCount returns the number of queued states.
func (w *Queue[E, B]) StateCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.states)
}

// SetError notes how the last write went; nil: well.
func (w *Queue[E, B]) SetError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// LastError returns the error of the last write.
func (w *Queue[E, B]) LastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		return nil
	}
	return fmt.Errorf("states and sessions of agents are not stored: %w", w.err)
}

// AddSession queues the session of an agent.
func (w *Queue[E, B]) AddSession(e E) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sessions[e] = struct{}{}
	w.wakeWriter()
}

// DrainSessions returns all queued sessions. They are in flight until
// FinishSessions.
func (w *Queue[E, B]) DrainSessions() []E {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sessions) == 0 {
		return nil
	}
	w.inFlight = slices.Collect(maps.Keys(w.sessions))
	clear(w.sessions)
	return w.inFlight
}

// FinishSessions ends the flight of sessions.
func (w *Queue[E, B]) FinishSessions() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inFlight = nil
}

// Unwritten returns the agents whose newest session may not be in the database yet.
// An agent may be listed twice.
func (w *Queue[E, B]) Unwritten() []E {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.AppendSeq(slices.Clone(w.inFlight), maps.Keys(w.sessions))
}
