// Package ackschedule decides when the acks of a connection are sent.
package ackschedule

import (
	"time"

	"github.com/coder/agentstatsd/fleet"
)

const (
	// A client keeps at most 16 reports until they are acked. So ackSoon requests
	// without an ack are acked after ackPause, and ackAtOnce of them at once. Only an
	// agent that floods the service reaches the latter.
	ackSoon, ackAtOnce = 8, 32
	ackPause           = 5 * time.Millisecond
	// ackGather is how long an ack waits for the rest of a flush, which may be several
	// batches. Then one ack covers all of them.
	ackGather = time.Second
)

// Delays are how long acks wait.
type Delays struct {
	// Ack is how long an ack waits for another response. The ack of a request with
	// something to be stored waits for that, at most by Flush longer.
	Ack, Flush time.Duration
}

// Schedule decides when the acks of a connection are sent. Clients need acks to know
// what to send again, and not at once. So an ack waits for another response, and for
// what will be durable soon. An ack that waits always has a time at which it is sent.
type Schedule struct {
	acked fleet.Progress // by the last ack that was sent
	// storeFrom and storeTo are the lowest and the highest sequence of the requests that
	// left something to be stored. None waits if storeTo is acked as durable.
	storeFrom, storeTo int64
	awaited            int64     // the highest sequence with ack_now or a goodbye
	unacked            int       // requests since the last ack
	force              bool      // an ack is due even if it acks nothing new
	moved              bool      // at has changed since a timer was set for it
	at                 time.Time // an ack is due if it acks anything new; zero: none waits
}

// Request has the properties of a request that decide when it is acked.
type Request struct {
	Sequence int64
	// ForStore is true if a part of it is to be stored, Now if the client waits for the
	// ack.
	ForStore, Now bool
}

// Resume sets the progress that the agent knows of when its session opens.
func (s *Schedule) Resume(p fleet.Progress) {
	s.acked = p
	s.storeFrom, s.storeTo = p.Durable+1, p.Received
}

// Acked returns the progress that the last ack had.
func (s *Schedule) Acked() fleet.Progress { return s.acked }

// Awaited returns the highest sequence with ack_now or a goodbye.
func (s *Schedule) Awaited() int64 { return s.awaited }

// At returns when an ack is due if it acks anything new; zero: none waits.
func (s *Schedule) At() time.Time { return s.at }

// IsDueAtOnce reports whether an ack is to be sent now, whatever it acks.
func (s *Schedule) IsDueAtOnce(now time.Time) bool { return s.force || !now.Before(s.at) }

// Add adds a request that was handled.
func (s *Schedule) Add(r Request, now time.Time, delays *Delays) {
	s.unacked++
	wait := delays.Ack
	if r.ForStore {
		if s.storeTo <= s.acked.Durable {
			s.storeFrom = r.Sequence
		}
		s.storeTo = max(s.storeTo, r.Sequence)
		wait += delays.Flush
	}
	if r.Now {
		s.Await(r.Sequence)
	}
	switch {
	case s.unacked >= ackAtOnce:
		wait = 0
	case s.unacked >= ackSoon:
		wait = min(wait, ackPause)
	}
	s.dueBy(now.Add(wait))
}

// Await makes an ack due, and another one with each progress until the sequence is
// durable.
func (s *Schedule) Await(sequence int64) {
	s.awaited = max(s.awaited, sequence)
	s.force = true
}

// IsAwaited reports whether somebody waits for an ack, as an agent does that has many
// requests without one.
func (s *Schedule) IsAwaited() bool {
	return s.force || s.awaited > s.acked.Durable || s.unacked >= ackSoon
}

// dueBy makes an ack due at the time, unless one is due before.
func (s *Schedule) dueBy(at time.Time) {
	if s.at.IsZero() || at.Before(s.at) {
		s.at, s.moved = at, true
	}
}

// IsDue reports whether an ack of the progress is to be sent now. If one is to be sent
// later, At is the latest time for it.
func (s *Schedule) IsDue(p fleet.Progress, now time.Time, delays *Delays) bool {
	if s.force {
		return true
	}
	if p == s.acked {
		return false
	}
	switch durable := p.Durable > s.acked.Durable; {
	case s.awaited > s.acked.Durable && (durable || s.awaited > s.acked.Received):
		return true
	case s.storeTo > s.acked.Durable && p.Durable >= s.storeTo:
		return true
	case s.storeTo > s.acked.Durable && p.Durable >= s.storeFrom:
		s.dueBy(now.Add(min(ackGather, delays.Ack)))
	case s.at.IsZero():
		s.dueBy(now.Add(delays.Ack))
	}
	return !now.Before(s.at)
}

// NeedsTimer reports whether a timer must be set for At. It returns true once for
// each value of At.
func (s *Schedule) NeedsTimer(now time.Time) bool {
	moved := s.moved && now.Before(s.at)
	s.moved = false
	return moved
}

// Sent records that the progress was acked.
func (s *Schedule) Sent(p fleet.Progress) {
	s.acked, s.storeFrom = p, p.Durable+1
	s.unacked, s.force, s.moved, s.at = 0, false, false, time.Time{}
}
