package agentapi

// slots bounds how many of something go on at once.
type slots chan struct{}

func newSlots(n int) slots { return make(slots, n) }

// take returns false if all slots are taken.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) free() { <-s }
