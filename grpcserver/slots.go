package grpcserver

// Slots bounds how many of something go on at once.
type Slots chan struct{}

// NewSlots returns n slots.
func NewSlots(n int) Slots { return make(Slots, n) }

// Take returns false if all slots are taken.
func (s Slots) Take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

// Free gives back a slot that was taken.
func (s Slots) Free() { <-s }
