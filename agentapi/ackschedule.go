package agentapi

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

// ackSchedule decides when the acks of a connection are sent. Clients need acks to know
// what to send again, and not at once. So an ack waits for another response, and for
// what will be durable soon. An ack that waits always has a time at which it is sent.
type ackSchedule struct {
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

// ackRequest has the properties of a request that decide when it is acked.
type ackRequest struct {
	sequence int64
	// forStore is true if a part of it is to be stored, now if the client waits for the
	// ack.
	forStore, now bool
}

// resume sets the progress that the agent knows of when its session opens.
func (s *ackSchedule) resume(p fleet.Progress) {
	s.acked = p
	s.storeFrom, s.storeTo = p.Durable+1, p.Received
}

// add adds a request that was handled.
func (s *ackSchedule) add(r ackRequest, now time.Time, opts *Options) {
	s.unacked++
	wait := opts.AckDelay
	if r.forStore {
		if s.storeTo <= s.acked.Durable {
			s.storeFrom = r.sequence
		}
		s.storeTo = max(s.storeTo, r.sequence)
		wait += opts.FlushInterval
	}
	if r.now {
		s.await(r.sequence)
	}
	switch {
	case s.unacked >= ackAtOnce:
		wait = 0
	case s.unacked >= ackSoon:
		wait = min(wait, ackPause)
	}
	s.dueBy(now.Add(wait))
}

// await makes an ack due, and another one with each progress until the sequence is
// durable.
func (s *ackSchedule) await(sequence int64) {
	s.awaited = max(s.awaited, sequence)
	s.force = true
}

// isAwaited reports whether somebody waits for an ack, as an agent does that has many
// requests without one.
func (s *ackSchedule) isAwaited() bool {
	return s.force || s.awaited > s.acked.Durable || s.unacked >= ackSoon
}

// dueBy makes an ack due at the time, unless one is due before.
func (s *ackSchedule) dueBy(at time.Time) {
	if s.at.IsZero() || at.Before(s.at) {
		s.at, s.moved = at, true
	}
}

// isDue reports whether an ack of the progress is to be sent now. If one is to be sent
// later, s.at is the latest time for it.
func (s *ackSchedule) isDue(p fleet.Progress, now time.Time, opts *Options) bool {
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
		s.dueBy(now.Add(min(ackGather, opts.AckDelay)))
	case s.at.IsZero():
		s.dueBy(now.Add(opts.AckDelay))
	}
	return !now.Before(s.at)
}

// needsTimer reports whether a timer must be set for s.at. It returns true once for
// each s.at.
func (s *ackSchedule) needsTimer(now time.Time) bool {
	moved := s.moved && now.Before(s.at)
	s.moved = false
	return moved
}

// sent records that the progress was acked.
func (s *ackSchedule) sent(p fleet.Progress) {
	s.acked, s.storeFrom = p, p.Durable+1
	s.unacked, s.force, s.moved, s.at = 0, false, false, time.Time{}
}
