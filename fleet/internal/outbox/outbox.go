// Package outbox has the notifications that a replica of a fleet is to send the others.
package outbox

import (
	"maps"
	"slices"
	"sync"

	"github.com/coder/agentstatsd/fleet/internal/notification"
)

// Outbox has what is to be sent: the newest sessions of agents, each agent once, and
// notifications without records, each kind once.
type Outbox[E comparable] struct {
	// wake has an element while something is queued.
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	sessions map[E]struct{}
	kinds    []notification.Kind
}

// New makes an outbox.
func New[E comparable]() *Outbox[E] {
	return &Outbox[E]{
		wake:     make(chan struct{}, 1),
		sessions: make(map[E]struct{}),
	}
}

// AddSessions queues the newest session of each of these agents.
func (o *Outbox[E]) AddSessions(entries ...E) {
	if len(entries) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range entries {
		o.sessions[e] = struct{}{}
	}
	o.wakePublisher()
}

// Add queues a notification without records.
func (o *Outbox[E]) Add(kind notification.Kind) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Contains(o.kinds, kind) {
		o.kinds = append(o.kinds, kind)
	}
	o.wakePublisher()
}

func (o *Outbox[E]) wakePublisher() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Wake has an element while something is queued.
func (o *Outbox[E]) Wake() <-chan struct{} { return o.wake }

// Drain returns and removes all that is queued: kinds in their order, sessions in none.
func (o *Outbox[E]) Drain() (kinds []notification.Kind, sessions []E) {
	o.mu.Lock()
	defer o.mu.Unlock()
	kinds, sessions = o.kinds, slices.Collect(maps.Keys(o.sessions))
	o.kinds = nil
	clear(o.sessions)
	return kinds, sessions
}
