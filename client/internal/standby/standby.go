// Package standby decides when a relay of an agent has a session.
package standby

import (
	"errors"
	"math/rand/v2"
	"time"
)

const (
	// MaxSleep is the longest time between two checks for what is due.
	MaxSleep = time.Hour

	// leftoverDelay is how long a relay that was superseded waits before it comes back
	// for what is not acked. By then the service has mostly stored what it received: it
	// does so each 5 s. The delay doubles, up to maxLeftoverDelay, each time that nothing
	// was stored, as while the service has no database. Up to half of it is added at
	// random, as all relays lose their database at one moment.
	leftoverDelay    = 10 * time.Second
	maxLeftoverDelay = 160 * time.Second
	// unreceivedDelay is how long it waits at first if something was not even received: an
	// agent that moves has said that just before.
	unreceivedDelay = time.Second
	// lingerReports is how long a relay keeps its session that has come back and whose
	// agent is connected elsewhere, in report intervals. Until then the other relay
	// has something new. Without a session in between the agent counts as connected.
	lingerReports = 1.5
)

// ErrNothingLeft is why a relay's session ends whose agent is not connected any more.
var ErrNothingLeft = errors.New("the agent has left, and nothing is pending")

// Standby decides when a relay has a session. That is while its agent is connected, and
// until all is acked that it said. After another relay of the agent superseded the
// session, it has none until there is something new, or only to deliver the rest:
//
//	needed --its agent has left, and nothing is pending--> not needed
//	not needed --the agent connects, or has said something--> needed
//	needed --another relay supersedes the session--> superseded
//	superseded --the agent says something, connects, or a delay with a rest--> needed
//
// The Agent's mu guards it.
type Standby struct {
	// IsRelay is false of an agent that has a session at all times.
	IsRelay bool
	// Present is true while the agent is connected to the relay's coderd.
	Present bool
	// Draining is true when the relay is to end after what is pending. Hurries is true
	// while that is sent at once.
	Draining, Hurries bool
	// supersededAt is when the last session was superseded; zero: it was not. Said is
	// true if the agent has said something since.
	supersededAt time.Time
	Said         bool
	// delay is how long it then waits with a rest. It doubles while durable, the sequence
	// that the service has stored, stays.
	delay   time.Duration
	durable int64
	// backAt is when it comes back with a rest.
	backAt time.Time
	// lingerUntil is when a session may end at the earliest that came back.
	lingerUntil time.Time
	// Waiting is true while Run waits for a reason for a session.
	Waiting bool
}

// Opened notes that a session is open.
func (s *Standby) Opened(now time.Time, reportInterval time.Duration) {
	if !s.supersededAt.IsZero() && !s.Present {
		s.lingerUntil = now.Add(time.Duration(lingerReports * float64(reportInterval)))
	}
	s.supersededAt = time.Time{}
}

// Superseded notes that another relay superseded the session. The service has stored what
// the agent said up to the sequence durable. received is true if it has received all.
func (s *Standby) Superseded(now time.Time, durable int64, received bool) {
	least := unreceivedDelay
	if received {
		least = leftoverDelay
	}
	s.supersededAt, s.Said = now, false
	s.delay = max(least, min(2*s.delay, maxLeftoverDelay))
	if durable > s.durable {
		s.durable, s.delay = durable, least
	}
	s.backAt = now.Add(s.delay + rand.N(s.delay/2))
}

// Connected notes that the agent is connected, or not any more.
func (s *Standby) Connected(present bool) {
	s.Present = present
	if present {
		s.supersededAt, s.lingerUntil, s.delay = time.Time{}, time.Time{}, 0
	}
}

// Wait returns for how long no session is needed; 0: it is. idle is true if no ack is
// pending.
func (s *Standby) Wait(now time.Time, idle bool) time.Duration {
	switch {
	case !s.IsRelay, s.Said && !idle, s.Draining && !idle:
		return 0
	case idle && (!s.Present || !s.supersededAt.IsZero()):
		return MaxSleep
	case s.supersededAt.IsZero():
		return 0
	}
	return max(0, s.backAt.Sub(now))
}

// Ends reports whether the open session is to end, and otherwise after which time to
// look again.
func (s *Standby) Ends(now time.Time, idle bool) (ends bool, wait time.Duration) {
	switch {
	case !s.IsRelay || s.Present || !idle:
		return false, MaxSleep
	case s.Draining || !now.Before(s.lingerUntil):
		return true, 0
	}
	return false, s.lingerUntil.Sub(now)
}
