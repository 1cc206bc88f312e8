// Package refusallog logs what the service refuses of agents, in few lines however many
// agents and refusals there are.
package refusallog

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// interval is the least time between two lines with one reason.
	interval = time.Minute
	// maxReasons are told apart. The service has fewer.
	maxReasons = 64
)

// Log logs the refusals of several agents: one line a minute with each reason. Its zero
// value has none.
type Log struct {
	mu sync.Mutex
	// reasons were logged. Guarded by mu.
	reasons map[string]*reason
}

// reason is a reason that was logged.
type reason struct {
	at      time.Time
	leftOut int64 // items that were refused since, without a line
}

// Refused logs a refusal to log, unless one with its reason was logged in the last minute.
func (l *Log) Refused(ctx context.Context, log *slog.Logger, now time.Time, r *agentstatsv1.Refusal) {
	if !log.Enabled(ctx, slog.LevelWarn) {
		return
	}
	leftOut, due := l.take(now, r)
	if !due {
		return
	}
	attrs := []any{"reason", r.GetReason(), "count", max(r.GetCount(), 1), "problem", r.GetMessage()}
	if len(r.GetNames()) > 0 {
		attrs = append(attrs, "names", strings.Join(r.GetNames(), ", "))
	}
	if leftOut > 0 {
		attrs = append(attrs, "left_out", leftOut)
	}
	log.WarnContext(ctx, "the service refuses something of an agent", attrs...)
}

// take reports whether a line is due, and how many items were left out since the last one.
func (l *Log) take(now time.Time, r *agentstatsv1.Refusal) (leftOut int64, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := r.GetReason()
	of := l.reasons[name]
	switch {
	case of == nil && len(l.reasons) >= maxReasons:
		name = ""
		of = l.reasons[name]
	case of == nil:
		name = strings.Clone(name)
	}
	if of == nil {
		if l.reasons == nil {
			l.reasons = make(map[string]*reason)
		}
		l.reasons[name] = &reason{at: now}
		return 0, true
	}
	if now.Sub(of.at) < interval {
		of.leftOut += max(r.GetCount(), 1)
		return 0, false
	}
	leftOut = of.leftOut
	of.at, of.leftOut = now, 0
	return leftOut, true
}
