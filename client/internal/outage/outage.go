// Package outage logs that agents have no session with the service, or that streams of
// coderd are broken, in few lines however many there are.
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
	bySubject             // and what the service knows of it
	kinds
)

// kindOf returns what a session failed by that ended with the code.
func kindOf(code codes.Code) kind {
	switch code {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.ResourceExhausted, codes.FailedPrecondition:
		return bySubject
	}
	return byService
}

// Texts are what a Log says.
type Texts struct {
	// Began is said when an outage begins and each interval, Failed of each failure at the
	// level of debug, and Ended when it ends. Of is the key of how many fail.
	Began, Failed, Ended, Of string
}

var (
	// Sessions are those of agents.
	Sessions = Texts{"agents have no session with the service", "session ended", "agents have their sessions with the service again", "agents"}
	// Streams are those of coderd.
	Streams = Texts{"stream broke", "stream broke", "streams are open again", "streams"}
)

// Log logs the failures of several subjects together, each kind by itself:
//
//	none --a session fails--> begun: a warning, and one each interval while sessions fail
//	begun --the last subject without a session has one, or needs none--> none: a line
//
// An outage that begins within an interval of the last warning is logged once that is
// over, if it lasts.
type Log struct {
	log   *slog.Logger
	texts Texts

	mu      sync.Mutex
	outages [kinds]outage // guarded by mu
}

// outage is one kind of failure.
type outage struct {
	warned time.Time // when the last warning was logged, of any outage; zero: never

	// Of the outage that lasts:

	began    time.Time
	isLogged bool
	failing  int // subjects that have no session
	reopened int // subjects that have one again
	failures int // since the last warning
}

// New returns a Log of no subjects.
func New(log *slog.Logger, texts Texts) *Log { return &Log{log: log, texts: texts} }

// Subject is an agent, or a stream of coderd. Its methods are for one goroutine.
type Subject struct {
	shared    *Log
	log       *slog.Logger
	isFailing bool
	kind      kind
}

// Subject returns a subject. The warnings of its failures go to log.
func (l *Log) Subject(log *slog.Logger) *Subject { return &Subject{shared: l, log: log} }

// Failed notes that the session has ended with a code, or was not opened. It logs
// a warning with the attributes if one is due.
func (s *Subject) Failed(ctx context.Context, now time.Time, code codes.Code, attrs ...any) {
	l, kind := s.shared, kindOf(code)
	if s.isFailing && s.kind != kind {
		s.end(ctx, now, false)
	}
	l.mu.Lock()
	o := &l.outages[kind]
	if !s.isFailing {
		if o.failing == 0 {
			o.began = now
		}
		o.failing++
		s.isFailing, s.kind = true, kind
	}
	o.failures++
	due := o.warned.IsZero() || now.Sub(o.warned) >= interval
	attrs = append([]any{l.texts.Of, o.failing, "for", now.Sub(o.began), "failures", o.failures}, attrs...)
	if due {
		o.warned, o.isLogged, o.failures = now, true, 0
	}
	l.mu.Unlock()
	if due {
		s.log.WarnContext(ctx, l.texts.Began, attrs...)
	} else {
		s.log.DebugContext(ctx, l.texts.Failed, attrs...)
	}
}

// Opened notes that the subject has a session.
func (s *Subject) Opened(ctx context.Context, now time.Time) { s.end(ctx, now, true) }

// Unneeded notes that the subject needs no session now.
func (s *Subject) Unneeded(ctx context.Context, now time.Time) { s.end(ctx, now, false) }

// end ends the failure of the subject. After that of the last one it logs the end of the
// outage, unless none has a session again.
func (s *Subject) end(ctx context.Context, now time.Time, reopened bool) {
	if !s.isFailing {
		return
	}
	s.isFailing = false
	l := s.shared
	l.mu.Lock()
	o := &l.outages[s.kind]
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
		l.log.InfoContext(ctx, l.texts.Ended, l.texts.Of, ended.reopened, "after", now.Sub(ended.began))
	}
}
