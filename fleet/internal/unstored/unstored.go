// Package unstored remembers that changes of the registrations cannot be stored.
package unstored

import (
	"fmt"
	"sync"
	"time"
)

// Counts is how long the fleet is unhealthy after a change that could not be stored,
// unless another change is stored before. There may be no other writes that show the
// fault, and no further attempt.
const Counts = time.Minute

// Fault is why the newest change of the registrations could not be stored.
type Fault struct {
	mu sync.Mutex
	// Guarded by mu.
	err error // nil: it was, or there was none
	at  time.Time
}

// Note notes the outcome of a change at a time; nil: it is stored.
func (f *Fault) Note(err error, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.at = err, at
}

// LastError returns the error while it counts.
func (f *Fault) LastError(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || now.Sub(f.at) >= Counts {
		return nil
	}
	return fmt.Errorf("registrations are not stored, lately at %s: %w", f.at.UTC().Format(time.RFC3339), f.err)
}
