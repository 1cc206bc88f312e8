package pubsub

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// queueLength is how many messages may wait for one subscriber: at 8 KB each
// 512 KB. A flush of metadata is 2 messages, so that is 32 flushes.
const queueLength = 64

// Memory is a PubSub within one process.
type Memory struct {
	metrics *metrics

	mu          sync.Mutex
	subscribers map[string]map[*subscriber]struct{}
}

// NewMemory returns a Memory without subscribers.
func NewMemory(reg prometheus.Registerer) (*Memory, error) {
	m := &Memory{subscribers: make(map[string]map[*subscriber]struct{})}
	var err error
	if m.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	return m, nil
}

// Publish is as in PubSub. It never blocks.
func (m *Memory) Publish(ctx context.Context, channel string, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish to %.64q: %w", channel, err)
	}
	if err := checkChannel(channel); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := checkPayload(payload); err != nil {
		return fmt.Errorf("publish to %q: %w", channel, err)
	}
	m.metrics.published.Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	subscribers := m.subscribers[channel]
	if len(subscribers) == 0 {
		return nil
	}
	payload = bytes.Clone(payload)
	for s := range subscribers {
		if dropped := s.offer(payload); dropped > 0 {
			m.metrics.overflows.Inc()
			m.metrics.dropped.Add(float64(dropped))
		}
	}
	return nil
}

// Subscribe is as in PubSub. A subscriber that falls queueLength messages
// behind loses those that wait, and is called with nil in their place.
func (m *Memory) Subscribe(channel string, f func(payload []byte)) (cancel func(), err error) {
	if err := checkChannel(channel); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := &subscriber{wake: make(chan struct{}, 1), ended: make(chan struct{})}
	m.mu.Lock()
	if m.subscribers[channel] == nil {
		m.subscribers[channel] = make(map[*subscriber]struct{})
	}
	m.subscribers[channel][s] = struct{}{}
	m.mu.Unlock()
	m.metrics.subscribers.Inc()
	go s.deliver(f)

	return sync.OnceFunc(func() {
		m.mu.Lock()
		delete(m.subscribers[channel], s)
		if len(m.subscribers[channel]) == 0 {
			delete(m.subscribers, channel)
		}
		m.mu.Unlock()
		s.end()
		<-s.ended
		m.metrics.subscribers.Dec()
	}), nil
}

// subscriber hands the messages of one subscription over from publishers to
// its own goroutine.
type subscriber struct {
	wake  chan struct{} // something changed below
	ended chan struct{} // closed when deliver has returned

	mu sync.Mutex
	// queue holds what waits, oldest first; nil in it: something was missed.
	queue  [][]byte
	ending bool
}

// offer queues payload without waiting and returns how many messages were
// dropped for want of room: all that waited and payload.
func (s *subscriber) offer(payload []byte) (dropped int) {
	s.mu.Lock()
	if len(s.queue) < queueLength {
		s.queue = append(s.queue, payload)
	} else {
		for i, waiting := range s.queue {
			if waiting != nil {
				dropped++
			}
			s.queue[i] = nil
		}
		dropped++
		s.queue = s.queue[:1]
	}
	s.mu.Unlock()
	s.notify()
	return dropped
}

// end makes deliver return after the call under way.
func (s *subscriber) end() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.notify()
}

func (s *subscriber) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// deliver calls f for what is queued, until end.
func (s *subscriber) deliver(f func(payload []byte)) {
	defer close(s.ended)
	for {
		payload, ok, ending := s.next()
		switch {
		case ending:
			return
		case ok:
			f(payload)
		default:
			<-s.wake
		}
	}
}

func (s *subscriber) next() (payload []byte, ok, ending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || len(s.queue) == 0 {
		return nil, false, s.ending
	}
	payload = s.queue[0]
	copy(s.queue, s.queue[1:]) // 64 slices at most
	s.queue[len(s.queue)-1] = nil
	s.queue = s.queue[:len(s.queue)-1]
	return payload, true, false
}
