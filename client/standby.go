package client

import (
	"context"
	"errors"
	"time"
)

const (
	// leftoverDelay is how long a relay that was superseded waits before it comes back
	// for what is not acked. By then the service has mostly stored what it received: it
	// does so each 5 s.
	leftoverDelay = 10 * time.Second
	// lingerReports is how long a relay keeps its session that has come back and whose
	// agent is connected elsewhere, in report intervals. Until then the other relay
	// has something new. Without a session in between the agent counts as connected.
	lingerReports = 1.5
)

// errNothingLeft is why a relay's session ends whose agent is not connected any more.
var errNothingLeft = errors.New("the agent has left, and nothing is pending")

// standby decides when a relay has a session. That is while its agent is connected, and
// until all is acked that it said. After another relay of the agent superseded the
// session, it has none until there is something new, or only to deliver the rest:
//
//	needed --its agent has left, and nothing is pending--> not needed
//	not needed --the agent connects, or has said something--> needed
//	needed --another relay supersedes the session--> superseded
//	superseded --the agent says something, connects, or leftoverDelay with a rest--> needed
//
// The Agent's mu guards it.
type standby struct {
	// isRelay is false of an agent that has a session at all times.
	isRelay bool
	// present is true while the agent is connected to the relay's coderd.
	present bool
	// draining is true when the relay is to end after what is pending. hurries is true
	// while that is sent at once.
	draining, hurries bool
	// supersededAt is when the last session was superseded; zero: it was not. said is
	// true if the agent has said something since.
	supersededAt time.Time
	said         bool
	// lingerUntil is when a session may end at the earliest that came back.
	lingerUntil time.Time
	// waiting is true while Run waits for a reason for a session.
	waiting bool
}

// opened notes that a session is open.
func (s *standby) opened(now time.Time, reportInterval time.Duration) {
	if !s.supersededAt.IsZero() && !s.present {
		s.lingerUntil = now.Add(time.Duration(lingerReports * float64(reportInterval)))
	}
	s.supersededAt = time.Time{}
}

// superseded notes that another relay superseded the session.
func (s *standby) superseded(now time.Time) {
	s.supersededAt, s.said = now, false
}

// connected notes that the agent is connected, or not any more.
func (s *standby) connected(present bool) {
	s.present = present
	if present {
		s.supersededAt, s.lingerUntil = time.Time{}, time.Time{}
	}
}

// wait returns for how long no session is needed; 0: it is. idle is true if no ack is
// pending.
func (s *standby) wait(now time.Time, idle bool) time.Duration {
	switch {
	case !s.isRelay, s.said && !idle, s.draining && !idle:
		return 0
	case idle && (!s.present || !s.supersededAt.IsZero()):
		return maxSleep
	case s.supersededAt.IsZero():
		return 0
	}
	return max(0, s.supersededAt.Add(leftoverDelay).Sub(now))
}

// ends reports whether the open session is to end, and otherwise after which time to
// look again.
func (s *standby) ends(now time.Time, idle bool) (ends bool, wait time.Duration) {
	switch {
	case !s.isRelay || s.present || !idle:
		return false, maxSleep
	case s.draining || !now.Before(s.lingerUntil):
		return true, 0
	}
	return false, s.lingerUntil.Sub(now)
}

// setPresent notes whether the agent is connected to the relay's coderd. What is pending
// of one that is not is sent at once.
func (a *Agent) setPresent(present bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.standby.connected(present)
	switch p := &a.outbox.Pace; {
	case !present && !a.standby.hurries:
		p.AddWaiter()
	case present && a.standby.hurries:
		p.RemoveWaiter()
	}
	a.standby.hurries = !present
	a.signal()
}

// drain has the relay end its session once nothing is pending.
func (a *Agent) drain() {
	a.setPresent(false)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.standby.draining = true
	a.signal()
}

// isIdle reports whether no ack is pending.
func (a *Agent) isIdle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.outbox.Idle()
}

// handedOverLocked notes that there is something new. It wakes Run if that is due before
// it checks again.
func (a *Agent) handedOverLocked() {
	a.standby.said = true
	if a.standby.waiting {
		a.signal()
	}
	a.wakeLocked()
}

// awaitReason waits until a session is needed. It returns false if ctx ends first.
func (a *Agent) awaitReason(ctx context.Context) bool {
	for {
		a.mu.Lock()
		wait := a.standby.wait(time.Now(), a.outbox.Idle())
		if a.closing {
			wait = 0 // the goodbye needs one
		}
		a.standby.waiting = wait > 0
		a.mu.Unlock()
		if wait == 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-a.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return false
		}
	}
}

// isUnneeded reports whether the open session is to end, and otherwise after which time
// to look again.
func (a *Agent) isUnneeded() (ends bool, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return false, maxSleep
	}
	return a.standby.ends(time.Now(), a.outbox.Idle())
}
