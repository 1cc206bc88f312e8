package grpcserver

import (
	"sync/atomic"

	"google.golang.org/grpc"
)

// Slots is a semaphore: it bounds how many of something go on at once.
type Slots chan struct{}

// NewSlots returns n slots.
func NewSlots(n int) Slots { return make(Slots, n) }

// TryAcquire takes a slot. It returns false if there is none.
func (s Slots) TryAcquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

// Release gives back a slot that TryAcquire took.
func (s Slots) Release() { <-s }

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
	calls    Slots
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
