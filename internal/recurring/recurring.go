// Package recurring bounds the lines of the log about what happens again and again: one a
// minute says how often it did.
package recurring

import (
	"sync"
	"time"
)

// interval is the least time between two lines.
const interval = time.Minute

// Events are events of one kind. The first one is logged at once, those of the minute
// after it by the next one after that. The zero value has none; it is safe for concurrent
// use.
type Events struct {
	mu sync.Mutex
	// Guarded by mu.
	logged time.Time // when the last line was due; zero: never
	count  int       // since then
}

// Due notes n more events. It reports whether the caller is to log a line now, and how many
// there were since the last one, these included.
func (e *Events) Due(n int) (total int, due bool) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count += n
	if !e.logged.IsZero() && now.Sub(e.logged) < interval {
		return 0, false
	}
	total, e.count, e.logged = e.count, 0, now
	return total, true
}
