package grpcserver

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
)

// Slots is a semaphore whose limit can change: it bounds how many of something go on at
// once. It is safe for concurrent use.
type Slots struct {
	mu sync.Mutex
	// Guarded by mu.
	limit, used int
	queue       []chan struct{} // of those who wait; closed when they have a slot
}

// NewSlots returns n slots.
func NewSlots(n int) *Slots { return &Slots{limit: n} }

// TryAcquire takes a slot. It returns false if there is none.
func (s *Slots) TryAcquire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used >= s.limit {
		return false
	}
	s.used++
	return true
}

// Acquire takes a slot. It waits for one until ctx ends, whose error it returns then.
func (s *Slots) Acquire(ctx context.Context) error {
	if s.TryAcquire() {
		return nil
	}
	has := make(chan struct{})
	s.mu.Lock()
	s.queue = append(s.queue, has)
	s.grantLocked()
	s.mu.Unlock()
	select {
	case <-has:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, has)
	if i < 0 {
		return nil // it has had one since a moment ago
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	return ctx.Err()
}

// Release gives back a slot.
func (s *Slots) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	s.grantLocked()
}

// SetLimit changes the number of slots. Those that are taken beyond a lowered one stay
// until they are given back.
func (s *Slots) SetLimit(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = n
	s.grantLocked()
}

// grantLocked gives slots to those who have waited longest.
func (s *Slots) grantLocked() {
	for s.used < s.limit && len(s.queue) > 0 {
		close(s.queue[0])
		s.queue = slices.Delete(s.queue, 0, 1)
		s.used++
	}
}

// Limit returns how many slots there are.
func (s *Slots) Limit() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit
}

// InUse returns how many slots are taken.
func (s *Slots) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Call is a stream of coderd's that may have a slot of Options.MaxCoderdCalls. Those that
// Service.Intercept gets of a service of coderd's are.
type Call interface {
	// HasSlot reports whether it has a slot, which ReleaseSlot gives back before the
	// end: for a call that only waits.
	HasSlot() bool
	ReleaseSlot()
}

// callSlot is a slot that is given back once.
type callSlot struct {
	calls    *Slots
	released atomic.Bool
}

// HasSlot implements Call.
func (c *callSlot) HasSlot() bool { return !c.released.Load() }

// ReleaseSlot implements Call.
func (c *callSlot) ReleaseSlot() {
	if c.released.CompareAndSwap(false, true) {
		c.calls.Release()
	}
}

// callStream is a stream with one response to coderd.
type callStream struct {
	grpc.ServerStream
	callSlot
}
