package grpcserver

// slots bounds how many of something go on at once.
type Slots chan struct{}

func NewSlots(n int) Slots { return make(Slots, n) }

// take returns false if all slots are taken.
func (s Slots) Take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s Slots) Free() { <-s }
