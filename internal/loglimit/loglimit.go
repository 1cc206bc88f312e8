// Package loglimit bounds the lines of a log: those with one text, those about one source,
// and all of them.
package loglimit

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
	// sourceShare is which part of the lines with one text may be about one source.
	sourceShare = 6
	// allTexts is how many times as many lines as those with one text there may be.
	allTexts = 10
	// maxSources bounds the sources, and texts, that are counted apart.
	maxSources = 4096
	// leftOutInterval is how long what is left out is counted before a line says so.
	leftOutInterval = time.Minute
)

// sources are the keys of attributes that say whom a line is about.
var sources = []string{"peer", "agent", "instance", "replica", "channel", "family"}

// Handler passes on so many lines a minute with the same text, of them a share about the
// same source, and ten times as many in all. So who is noisy hides nobody else. The next
// line with a text that is passed on says how many were not. A minute after lines were
// left out another line says how many there were in all.
type Handler struct {
	next slog.Handler
	// source is that of attributes which all lines of this handler have.
	source string
	shared *counts
}

// counts is what the handlers of one log share.
type counts struct {
	next       slog.Handler // without attributes
	suppressed atomic.Int64

	mu sync.Mutex
	// Guarded by mu.

	perMinute int // 0 or less: no limit
	buckets   map[key]*bucket
	all       *rate.Limiter
	leftOut   int64 // since the last line that said so; above 0 while a timer runs
}

type key struct{ text, source string }

type bucket struct {
	limiter    *rate.Limiter
	suppressed int64
}

// New limits what goes to next; perMinute 0 or less does not.
func New(next slog.Handler, perMinute int) *Handler {
	return &Handler{next: next, shared: &counts{
		next: next, perMinute: perMinute, buckets: make(map[key]*bucket), all: newLimiter(allTexts * perMinute),
	}}
}

// newLimiter returns a limiter of lines.
func newLimiter(perMinute int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)
}

// PerMinute returns how many lines a minute with the same text are passed on.
func (l *Handler) PerMinute() int {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	return l.shared.perMinute
}

// SetPerMinute changes that, of all handlers of the log.
func (l *Handler) SetPerMinute(perMinute int) {
	c := l.shared
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.perMinute != perMinute {
		c.perMinute, c.all = perMinute, newLimiter(allTexts*perMinute)
		clear(c.buckets)
	}
}

// Suppressed returns how many lines were left out.
func (l *Handler) Suppressed() int64 { return l.shared.suppressed.Load() }

// Enabled implements slog.Handler.
func (l *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (l *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *l
	with.next = l.next.WithAttrs(attrs)
	for _, a := range attrs {
		if slices.Contains(sources, a.Key) {
			with.source = a.Value.String()
		}
	}
	return &with
}

// WithGroup implements slog.Handler.
func (l *Handler) WithGroup(name string) slog.Handler {
	with := *l
	with.next = l.next.WithGroup(name)
	return &with
}

// Handle implements slog.Handler.
func (l *Handler) Handle(ctx context.Context, r slog.Record) error {
	source := l.source
	r.Attrs(func(a slog.Attr) bool {
		if slices.Contains(sources, a.Key) {
			source = a.Value.String()
			return false
		}
		return true
	})
	suppressed, ok := l.shared.allow(key{r.Message, source}, r.Time)
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
func (c *counts) allow(of key, now time.Time) (suppressed int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.perMinute <= 0 {
		return 0, true
	}
	ofText := c.bucketLocked(key{text: of.text}, c.perMinute, now)
	ok = true
	if of.source != "" {
		ok = c.bucketLocked(of, max(1, c.perMinute/sourceShare), now).limiter.AllowN(now, 1)
	}
	if !ok || !ofText.limiter.AllowN(now, 1) || !c.all.AllowN(now, 1) {
		ofText.suppressed++
		c.suppressed.Add(1)
		if c.leftOut++; c.leftOut == 1 {
			time.AfterFunc(leftOutInterval, c.logLeftOut)
		}
		return 0, false
	}
	suppressed, ofText.suppressed = ofText.suppressed, 0
	return suppressed, true
}

// logLeftOut logs how many lines were left out.
func (c *counts) logLeftOut() {
	c.mu.Lock()
	lines := c.leftOut
	c.leftOut = 0
	c.mu.Unlock()
	ctx := context.Background()
	if !c.next.Enabled(ctx, slog.LevelWarn) {
		return
	}
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "lines are left out of the log: there are too many", 0)
	r.AddAttrs(slog.Int64("lines", lines), slog.Duration("within", leftOutInterval))
	_ = c.next.Handle(ctx, r) // as of any other line
}

// bucketLocked returns the bucket of a text, or of a source. If there are too many, those
// of sources that are full again go; if there are none, all of sources do.
func (c *counts) bucketLocked(of key, perMinute int, now time.Time) *bucket {
	b := c.buckets[of]
	if b != nil {
		return b
	}
	if len(c.buckets) >= maxSources {
		for k, b := range c.buckets {
			if k.source != "" && b.limiter.TokensAt(now) >= float64(b.limiter.Burst()) {
				delete(c.buckets, k)
			}
		}
	}
	if len(c.buckets) >= maxSources {
		for k := range c.buckets {
			if k.source != "" {
				delete(c.buckets, k)
			}
		}
	}
	b = &bucket{limiter: newLimiter(perMinute)}
	c.buckets[of] = b
	return b
}
