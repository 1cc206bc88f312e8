// Package tap shows a few people what single agents send, as it comes. Of agents that
// nobody watches it costs a look at a pointer.
package tap

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

const (
	// maxTaps are open at once. People watch, and each takes 0.2 MB if it is not read.
	maxTaps = 16
	// maxQueued events wait for the reader of a tap: those of some minutes.
	maxQueued = 256
	// maxText bounds the text of an event, in bytes.
	maxText = 500
)

// ErrTooMany is returned by Open if as many taps are open as may be.
var ErrTooMany = fmt.Errorf("want at most %d agents to be watched at a time, got one more", maxTaps)

// Event is something that was received of an agent, or of its session.
type Event struct {
	At time.Time
	// Kind is hello, stats, metadata, lifecycle, app_health, network, refused, goodbye or
	// end.
	Kind string
	// Sequence of the request; 0: it is of none.
	Sequence int64
	// Text is one line, without values of metadata.
	Text string
	// Missed are the events that were left out before this one.
	Missed int
}

// Taps are those of a replica. A nil Taps has none, and can have none. Its methods may be
// called concurrently.
type Taps struct {
	refused, missed prometheus.Counter

	// watched has the open taps by agent; nil: there are none. It is replaced, never
	// changed in place, under mu.
	watched atomic.Pointer[map[agent.ID][]*Tap]
	mu      sync.Mutex
}

// New returns a Taps without taps. It registers what it counts with reg.
func New(reg prometheus.Registerer) (*Taps, error) {
	t := &Taps{
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_agent_watches_refused_total", Help: "Watches of what an agent sends that were refused, because too many were open."}),
		missed:  prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_agent_watch_events_missed_total", Help: "Events that somebody who watches an agent missed, as they were not read in time."}),
	}
	if err := ownmetrics.Register(reg, t.refused, t.missed); err != nil {
		return nil, fmt.Errorf("tap: %w", err)
	}
	return t, nil
}

// Tap is what one reader gets of one agent.
type Tap struct {
	taps   *Taps
	id     agent.ID
	events chan Event

	mu     sync.Mutex
	missed int // since the last event that was queued. Guarded by mu.
}

// Open returns what is received of an agent from now on. It must be closed. The error is
// ErrTooMany.
func (t *Taps) Open(id agent.ID) (*Tap, error) {
	tap := &Tap{taps: t, id: id, events: make(chan Event, maxQueued)}
	open := 0
	t.change(func(watched map[agent.ID][]*Tap) {
		for _, taps := range watched {
			open += len(taps)
		}
		if open < maxTaps {
			watched[id] = append(slices.Clip(watched[id]), tap)
		}
	})
	if open >= maxTaps {
		t.refused.Inc()
		return nil, ErrTooMany
	}
	return tap, nil
}

// change replaces watched by what f makes of a copy.
func (t *Taps) change(f func(watched map[agent.ID][]*Tap)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := make(map[agent.ID][]*Tap)
	if watched := t.watched.Load(); watched != nil {
		maps.Copy(next, *watched)
	}
	f(next)
	if len(next) == 0 {
		t.watched.Store(nil)
		return
	}
	t.watched.Store(&next)
}

// of returns the taps of an agent.
func (t *Taps) of(id agent.ID) []*Tap {
	if t == nil {
		return nil
	}
	watched := t.watched.Load()
	if watched == nil {
		return nil
	}
	return (*watched)[id]
}

// Watches reports whether an agent is watched. Otherwise no events have to be made.
func (t *Taps) Watches(id agent.ID) bool { return len(t.of(id)) > 0 }

// Send sends an event of an agent to those who watch it. It does not block. Of a text that
// is too long the end is cut off. What cannot be printed, as names of agents may have it,
// is replaced: it could steer a terminal.
func (t *Taps) Send(id agent.ID, e Event) {
	e.Text = agent.ShortenText(strings.Map(printable, e.Text), maxText)
	for _, tap := range t.of(id) {
		tap.send(e)
	}
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

func (t *Tap) send(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Missed = t.missed
	select {
	case t.events <- e:
		t.missed = 0
	default:
		t.missed++
		t.taps.missed.Inc()
	}
}

// Events has the events in their order.
func (t *Tap) Events() <-chan Event { return t.events }

// Close ends the tap. It is safe to repeat. Events is not closed.
func (t *Tap) Close() {
	t.taps.change(func(watched map[agent.ID][]*Tap) {
		left := slices.DeleteFunc(slices.Clone(watched[t.id]), func(other *Tap) bool { return other == t })
		if watched[t.id] = left; len(left) == 0 {
			delete(watched, t.id)
		}
	})
}
