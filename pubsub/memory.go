package pubsub

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Memory is an Engine within one process.
type Memory struct {
	metrics *metrics

	mu       sync.Mutex
	channels map[string]audience
}

// NewMemory returns a Memory without subscribers.
func NewMemory(reg prometheus.Registerer) (*Memory, error) {
	m := &Memory{channels: make(map[string]audience)}
	var err error
	if m.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	if err := registerConnected(reg, m); err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	return m, nil
}

// Run waits until ctx is cancelled and returns nil. Memory works without it too.
func (*Memory) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Connected returns nil.
func (*Memory) Connected() error { return nil }

// Publish is as in PubSub. It never blocks.
func (m *Memory) Publish(ctx context.Context, channel string, payload []byte) error {
	start := time.Now()
	err := checkMessage(ctx, channel, payload)
	if err == nil {
		m.send(channel, payload)
	}
	m.metrics.countPublish(start, err)
	return err
}

func (m *Memory) send(channel string, payload []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if subscribers := m.channels[channel]; len(subscribers) > 0 {
		subscribers.offer(bytes.Clone(payload), m.metrics)
	}
}

// Subscribe is as in PubSub. A subscriber that falls queueLength messages
// behind loses those that wait, and is called with nil in their place.
func (m *Memory) Subscribe(channel string, f func(payload []byte)) (cancel func(), err error) {
	if err := checkChannel(channel); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := newSubscriber(f)
	m.mu.Lock()
	if m.channels[channel] == nil {
		m.channels[channel] = make(audience)
	}
	m.channels[channel][s] = struct{}{}
	m.mu.Unlock()
	m.metrics.subscribers.Inc()

	return sync.OnceFunc(func() {
		m.mu.Lock()
		delete(m.channels[channel], s)
		if len(m.channels[channel]) == 0 {
			delete(m.channels, channel)
		}
		m.mu.Unlock()
		s.stop()
		m.metrics.subscribers.Dec()
	}), nil
}
