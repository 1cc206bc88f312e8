package pubsub

import "sync"

// queueLength is how many messages may wait for one subscriber: at 8 KB each
// 512 KB. A flush of metadata is 2 messages, so that is 32 flushes.
const queueLength = 64

// audience is the subscribers of one channel. The engine's mutex guards it.
type audience map[*subscriber]struct{}

// offer queues payload for each subscriber without waiting; nil notifies them that
// something was missed. A subscriber that is queueLength messages behind loses
// those that wait, and is called with nil in their place.
func (a audience) offer(payload []byte, m *metrics) {
	for s := range a {
		if dropped := s.offer(payload); dropped > 0 {
			m.overflows.Inc()
			m.droppedSubscriber.Add(float64(dropped))
		}
	}
}

// subscriber hands the messages of one subscription over from the engine to
// its own goroutine.
type subscriber struct {
	wake  chan struct{} // something changed below
	ended chan struct{} // closed when deliver has returned

	mu sync.Mutex
	// queue is what waits, oldest first; nil in it: something was missed.
	queue  [][]byte
	ending bool
}

// newSubscriber returns a subscriber that calls f until it is stopped.
func newSubscriber(f func(payload []byte)) *subscriber {
	s := &subscriber{wake: make(chan struct{}, 1), ended: make(chan struct{})}
	go s.deliver(f)
	return s
}

// offer queues payload without waiting and returns how many messages were
// dropped for want of room: all that waited and payload.
func (s *subscriber) offer(payload []byte) (dropped int) {
	s.mu.Lock()
	switch waiting := len(s.queue); {
	case payload == nil && waiting > 0 && s.queue[waiting-1] == nil:
		// Notified already.
	case waiting < queueLength:
		s.queue = append(s.queue, payload)
	default:
		for i, old := range s.queue {
			if old != nil {
				dropped++
			}
			s.queue[i] = nil
		}
		if payload != nil {
			dropped++
		}
		s.queue = s.queue[:1]
	}
	s.mu.Unlock()
	s.notify()
	return dropped
}

// stop waits for the call under way. There are no calls after it.
func (s *subscriber) stop() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.notify()
	<-s.ended
}

func (s *subscriber) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// deliver calls f for what is queued, until stop.
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
