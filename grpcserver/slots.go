package grpcserver

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
