// Package recurring bounds the lines of the log about what happens again and again: one a
// minute says how often it did.
package recurring

import (
	"context"
	"log/slog"
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

// Log notes n more events, and logs them: at the level if a line is due, with how many there
// were since the last one, these included, as the attribute what. Otherwise they are for
// debugging. It does not block but for the log.
func (e *Events) Log(ctx context.Context, log *slog.Logger, level slog.Level, what string, n int, text string, attrs ...any) {
	total, due := e.note(n)
	if !due {
		total, level = n, slog.LevelDebug
	}
	if log.Enabled(ctx, level) {
		log.Log(ctx, level, text, append([]any{what, total}, attrs...)...)
	}
}

// note reports whether a line is due, and how many events there were since the last one.
func (e *Events) note(n int) (total int, due bool) {
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
