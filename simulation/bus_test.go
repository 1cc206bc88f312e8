package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

var errBusCut = errors.New("no route to the pubsub")

// bus is the pubsub of all replicas: messages take time, and arrive in the order
// of each publisher unless it reorders.
type bus struct {
	draw *source

	mu sync.Mutex
	// Guarded by mu.

	delay    time.Duration // at most, of a message
	reorders bool
	subs     []*subscription
	// last is when the newest message of a publisher arrives at a subscriber.
	last map[pair]time.Time
}

type pair struct{ from, to *busEnd }

func newBus(draw *source) *bus {
	return &bus{draw: draw, delay: 5 * time.Millisecond, last: make(map[pair]time.Time)}
}

// busEnd is the access of one process. It is a pubsub.PubSub.
type busEnd struct {
	bus  *bus
	name string

	// Guarded by bus.mu.

	// cut: nothing goes in or out. hangs: who publishes then gets no error.
	cut, hangs bool
	dead       bool
}

// subscription is one subscriber of one channel.
type subscription struct {
	end     *busEnd
	channel string

	// calling is locked during a call of f.
	calling  sync.Mutex
	canceled bool
	f        func([]byte)
}

func (s *subscription) call(payload []byte) {
	s.calling.Lock()
	defer s.calling.Unlock()
	if !s.canceled {
		s.f(payload)
	}
}

func (e *busEnd) Publish(ctx context.Context, channel string, payload []byte) error {
	b := e.bus
	b.mu.Lock()
	cut, hangs, dead := e.cut, e.hangs, e.dead
	if !cut && !dead {
		b.send(e, channel, bytes.Clone(payload))
	}
	b.mu.Unlock()
	if (cut || dead) && hangs {
		<-ctx.Done()
		return fmt.Errorf("publish: %w", ctx.Err())
	}
	if cut || dead {
		return errBusCut
	}
	return ctx.Err()
}

// send delivers a message to each subscriber in its time.
func (b *bus) send(from *busEnd, channel string, payload []byte) {
	now := time.Now()
	for _, s := range b.subs {
		if s.channel != channel {
			continue
		}
		at := now.Add(b.draw.upTo(b.delay, channel+from.name+s.end.name))
		way := pair{from, s.end}
		if last := b.last[way]; !b.reorders && !at.After(last) {
			at = last.Add(time.Nanosecond)
		}
		b.last[way] = at
		time.AfterFunc(at.Sub(now), func() { b.arrive(s, payload) })
	}
}

func (b *bus) arrive(s *subscription, payload []byte) {
	b.mu.Lock()
	lost := s.end.cut || s.end.dead
	b.mu.Unlock()
	if !lost {
		s.call(payload)
	}
}

func (e *busEnd) Subscribe(channel string, f func([]byte)) (cancel func(), err error) {
	s := &subscription{end: e, channel: channel, f: f}
	b := e.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs = append(b.subs, s)
	return func() {
		b.mu.Lock()
		b.subs = slices.DeleteFunc(b.subs, func(o *subscription) bool { return o == s })
		b.mu.Unlock()
		s.calling.Lock()
		defer s.calling.Unlock()
		s.canceled = true
	}, nil
}

func (e *busEnd) isCut() bool {
	e.bus.mu.Lock()
	defer e.bus.mu.Unlock()
	return e.cut
}

// sever cuts the end off.
func (e *busEnd) sever(hangs bool) {
	e.bus.mu.Lock()
	defer e.bus.mu.Unlock()
	e.cut, e.hangs = true, hangs
}

// heal connects the end again, and notifies its subscribers that they missed
// messages, as an engine does that had no connection.
func (e *busEnd) heal() {
	b := e.bus
	b.mu.Lock()
	if !e.cut {
		b.mu.Unlock()
		return
	}
	e.cut, e.hangs = false, false
	var missed []*subscription
	for _, s := range b.subs {
		if s.end == e {
			missed = append(missed, s)
		}
	}
	b.mu.Unlock()
	for _, s := range missed {
		time.AfterFunc(b.draw.upTo(5*time.Millisecond, s.channel+e.name), func() { s.call(nil) })
	}
}

func (e *busEnd) kill() {
	e.bus.mu.Lock()
	defer e.bus.mu.Unlock()
	e.dead = true
}

func (b *bus) set(delay time.Duration, reorders bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.delay, b.reorders = delay, reorders
}
