// Package outage logs that something does not work, in few lines however often it is
// tried: one when that begins, one a minute, one when it works again.
package outage

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// interval is the least time between two warnings.
const interval = time.Minute

// Log logs the outages of one thing:
//
//	works --Failed--> fails: a warning, and one each interval while attempts fail
//	fails --Works--> works: a line, if there was a warning
//
// An outage that begins within an interval of the last warning is logged once that is
// over, if it lasts.
type Log struct {
	log          *slog.Logger
	began, ended string // texts
	fails        atomic.Bool

	mu sync.Mutex
	// Guarded by mu.

	since    time.Time // when the outage began
	warned   time.Time // when the last warning was logged, of any outage; zero: never
	isLogged bool      // the outage is
	failures int       // since the last warning
}

// New returns a Log of what works. began is the text when it does not any more, and each
// minute; ended when it does again.
func New(log *slog.Logger, began, ended string) *Log {
	return &Log{log: log, began: began, ended: ended}
}

// Failed notes that an attempt failed, with the error and further attributes.
func (l *Log) Failed(ctx context.Context, err error, attrs ...any) {
	now := time.Now()
	l.mu.Lock()
	if !l.fails.Load() {
		l.since = now
		l.fails.Store(true)
	}
	l.failures++
	due := l.warned.IsZero() || now.Sub(l.warned) >= interval
	all := append([]any{"error", err, "failures", l.failures, "for", now.Sub(l.since).Round(time.Millisecond)}, attrs...)
	if due {
		l.warned, l.isLogged, l.failures = now, true, 0
	}
	l.mu.Unlock()
	level := slog.LevelDebug
	if due {
		level = slog.LevelWarn
	}
	l.log.Log(ctx, level, l.began, all...)
}

// Works notes that an attempt succeeded. It costs next to nothing while all do.
func (l *Log) Works(ctx context.Context) {
	if !l.fails.Load() {
		return
	}
	l.mu.Lock()
	fails, isLogged, since := l.fails.Swap(false), l.isLogged, l.since
	l.isLogged = false
	l.mu.Unlock()
	if fails && isLogged {
		l.log.InfoContext(ctx, l.ended, "after", time.Since(since).Round(time.Millisecond))
	}
}
