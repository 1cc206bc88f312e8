// Package recovery has relays find together that the service can be reached again. Each
// waits longer after each attempt that failed, so one that failed late would come back long
// after the service.
package recovery

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// tryInterval is between two attempts, of one of those that wait each.
	tryInterval = time.Second
	// spread is the time over which the others try, once one has a session.
	spread = time.Second
	// allInterval is the least time between two attempts of all: a service that takes some
	// sessions and refuses others is not overrun.
	allInterval = 10 * time.Second
)

// Recovery is that of the relays of one coderd. Its zero value works, and nil does nothing.
// All methods may be called by any goroutine.
type Recovery struct {
	mu sync.Mutex
	// waiting has the channel of each that waits. Guarded by mu, as is the rest.
	waiting map[chan time.Duration]struct{}
	timer   *time.Timer // of the next attempt; nil: nobody waits
	triedAt time.Time   // when all tried last
}

// Wait returns a channel that gets the time after which to try again. Call done at the end
// of the wait.
func (r *Recovery) Wait() (again <-chan time.Duration, done func()) {
	if r == nil {
		return nil, func() {}
	}
	c := make(chan time.Duration, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = make(map[chan time.Duration]struct{})
	}
	r.waiting[c] = struct{}{}
	if r.timer == nil {
		r.timer = time.AfterFunc(tryInterval, r.tryOne)
	}
	return c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waiting, c)
		r.stopLocked()
	}
}

// Opened notes that one has a session: the others try again soon.
func (r *Recovery) Opened(now time.Time) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 || now.Sub(r.triedAt) < allInterval {
		return
	}
	r.triedAt = now
	for c := range r.waiting {
		c <- rand.N(spread) // it has room
	}
	clear(r.waiting)
	r.stopLocked()
}

// tryOne has any of those that wait try again.
func (r *Recovery) tryOne() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.waiting {
		delete(r.waiting, c)
		c <- 0
		break
	}
	if r.timer != nil {
		r.timer.Reset(tryInterval)
	}
	r.stopLocked()
}

func (r *Recovery) stopLocked() {
	if len(r.waiting) == 0 && r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}
