package main

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// logSourceShare is which part of the lines with one text may be about one source.
	logSourceShare = 6
	// maxLogSources bounds the sources, and texts, that are counted apart.
	maxLogSources = 4096
)

// logSources are the keys of attributes that say whom a line is about.
var logSources = []string{"peer", "agent", "instance", "replica", "channel", "family"}

// logLimit passes on so many lines a minute with the same text, and of them a share
// about the same source. So who is noisy hides nobody else. The next line that is passed
// on says how many were not.
type logLimit struct {
	next slog.Handler
	// source is that of attributes which all lines of this handler have.
	source string
	shared *logCounts
}

// logCounts is what the handlers of one log share.
type logCounts struct {
	perMinute  int
	suppressed atomic.Int64

	mu      sync.Mutex
	buckets map[logKey]*logBucket
}

type logKey struct{ text, source string }

type logBucket struct {
	limiter    *rate.Limiter
	suppressed int64
}

// newLogLimit limits what goes to next; perMinute 0 or less does not.
func newLogLimit(next slog.Handler, perMinute int) slog.Handler {
	if perMinute <= 0 {
		return next
	}
	return &logLimit{next: next, shared: &logCounts{perMinute: perMinute, buckets: make(map[logKey]*logBucket)}}
}

// Enabled implements slog.Handler.
func (l *logLimit) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (l *logLimit) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *l
	with.next = l.next.WithAttrs(attrs)
	for _, a := range attrs {
		if slices.Contains(logSources, a.Key) {
			with.source = a.Value.String()
		}
	}
	return &with
}

// WithGroup implements slog.Handler.
func (l *logLimit) WithGroup(name string) slog.Handler {
	with := *l
	with.next = l.next.WithGroup(name)
	return &with
}

// Handle implements slog.Handler.
func (l *logLimit) Handle(ctx context.Context, r slog.Record) error {
	source := l.source
	r.Attrs(func(a slog.Attr) bool {
		if slices.Contains(logSources, a.Key) {
			source = a.Value.String()
			return false
		}
		return true
	})
	suppressed, ok := l.shared.allow(logKey{r.Message, source}, r.Time)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int64("suppressed", suppressed))
	}
	return l.next.Handle(ctx, r)
}

// allow reports whether a line may pass, and how many with its text did not since the
// last one that did.
func (c *logCounts) allow(key logKey, now time.Time) (suppressed int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.bucketLocked(logKey{text: key.text}, c.perMinute, now)
	ok = true
	if key.source != "" {
		ok = c.bucketLocked(key, max(1, c.perMinute/logSourceShare), now).limiter.AllowN(now, 1)
	}
	if !ok || !all.limiter.AllowN(now, 1) {
		all.suppressed++
		c.suppressed.Add(1)
		return 0, false
	}
	suppressed, all.suppressed = all.suppressed, 0
	return suppressed, true
}

// bucketLocked returns the bucket of key. If there are too many, those that are full
// again go; if there are none, all do.
func (c *logCounts) bucketLocked(key logKey, perMinute int, now time.Time) *logBucket {
	b := c.buckets[key]
	if b != nil {
		return b
	}
	if len(c.buckets) >= maxLogSources {
		for k, b := range c.buckets {
			if k.source != "" && b.limiter.TokensAt(now) >= float64(b.limiter.Burst()) {
				delete(c.buckets, k)
			}
		}
	}
	if len(c.buckets) >= maxLogSources {
		for k := range c.buckets {
			if k.source != "" {
				delete(c.buckets, k)
			}
		}
	}
	b = &logBucket{limiter: rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)}
	c.buckets[key] = b
	return b
}
