// Package outage logs that agents have no session with the service, in few lines however
// many agents there are.
package outage

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// interval is the least time between two warnings of a kind.
const interval = time.Minute

// kind is what a session failed by.
type kind int

const (
	byService kind = iota // and the way to it
	byAgent               // and what the service knows of it
	kinds
)

// kindOf returns what a session failed by that ended with the code.
func kindOf(code codes.Code) kind {
	switch code {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.ResourceExhausted, codes.FailedPrecondition:
		return byAgent
	}
	return byService
}

// Log logs the failures of several agents together, each kind by itself:
//
//	none --a session fails--> begun: a warning, and one each interval while sessions fail
//	begun --the last agent without a session has one, or needs none--> none: a line
//
// An outage that begins within an interval of the last warning is logged once that is
// over, if it lasts.
type Log struct {
	log *slog.Logger

	mu      sync.Mutex
	outages [kinds]outage // guarded by mu
}

// outage is one kind of failure.
type outage struct {
	warned time.Time // when the last warning was logged, of any outage; zero: never

	// Of the outage that lasts:

	began    time.Time
	isLogged bool
	failing  int // agents that have no session
	reopened int // agents that have one again
	failures int // since the last warning
}

// New returns a Log of no agents.
func New(log *slog.Logger) *Log { return &Log{log: log} }

// Agent is one agent of a Log. Its methods are for one goroutine.
type Agent struct {
	shared    *Log
	log       *slog.Logger
	isFailing bool
	kind      kind
}

// Agent returns an agent. The warnings of its failures go to log.
func (l *Log) Agent(log *slog.Logger) *Agent { return &Agent{shared: l, log: log} }

// Failed notes that the agent's session has ended with a code, or was not opened. It logs
// a warning with the attributes if one is due.
func (a *Agent) Failed(ctx context.Context, now time.Time, code codes.Code, attrs ...any) {
	l, kind := a.shared, kindOf(code)
	if a.isFailing && a.kind != kind {
		a.end(ctx, now, false)
	}
	l.mu.Lock()
	o := &l.outages[kind]
	if !a.isFailing {
		if o.failing == 0 {
			o.began = now
		}
		o.failing++
		a.isFailing, a.kind = true, kind
	}
	o.failures++
	due := o.warned.IsZero() || now.Sub(o.warned) >= interval
	attrs = append([]any{"agents", o.failing, "for", now.Sub(o.began), "failures", o.failures}, attrs...)
	if due {
		o.warned, o.isLogged, o.failures = now, true, 0
	}
	l.mu.Unlock()
	if due {
		a.log.WarnContext(ctx, "agents have no session with the service", attrs...)
	} else {
		a.log.DebugContext(ctx, "session ended", attrs...)
	}
}

// Opened notes that the agent has a session.
func (a *Agent) Opened(ctx context.Context, now time.Time) { a.end(ctx, now, true) }

// Unneeded notes that the agent needs no session now.
func (a *Agent) Unneeded(ctx context.Context, now time.Time) { a.end(ctx, now, false) }

// end ends the failure of the agent. After that of the last one it logs the end of the
// outage, unless no agent has a session again.
func (a *Agent) end(ctx context.Context, now time.Time, reopened bool) {
	if !a.isFailing {
		return
	}
	a.isFailing = false
	l := a.shared
	l.mu.Lock()
	o := &l.outages[a.kind]
	o.failing--
	if reopened {
		o.reopened++
	}
	ended := *o
	if o.failing == 0 {
		*o = outage{warned: o.warned}
	}
	l.mu.Unlock()
	if ended.failing == 0 && ended.isLogged && ended.reopened > 0 {
		l.log.InfoContext(ctx, "agents have their sessions with the service again", "agents", ended.reopened, "after", now.Sub(ended.began))
	}
}
