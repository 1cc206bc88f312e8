package client

import (
	"context"
	"time"

	"github.com/coder/agentstatsd/client/internal/standby"
)

// setPresent notes whether the agent is connected to the relay's coderd. What is pending
// of one that is not is sent at once.
func (a *Agent) setPresent(present bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.standby.Connected(present)
	switch p := &a.outbox.Pace; {
	case !present && !a.standby.Hurries:
		p.AddWaiter()
	case present && a.standby.Hurries:
		p.RemoveWaiter()
	}
	a.standby.Hurries = !present
	a.signal()
}

// drain has the relay end its session once nothing is pending.
func (a *Agent) drain() {
	a.setPresent(false)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.standby.Draining = true
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
	a.standby.Said = true
	if a.standby.Waiting {
		a.signal()
	}
	a.wakeLocked()
}

// awaitReason waits until a session is needed. It returns false if ctx ends first.
func (a *Agent) awaitReason(ctx context.Context) bool {
	for {
		a.mu.Lock()
		wait := a.standby.Wait(time.Now(), a.outbox.Idle())
		if a.closing {
			wait = 0 // the goodbye needs one
		}
		a.standby.Waiting = wait > 0
		a.mu.Unlock()
		if wait == 0 {
			return ctx.Err() == nil
		}
		a.failures.Unneeded(ctx, time.Now())
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
		return false, standby.MaxSleep
	}
	return a.standby.Ends(time.Now(), a.outbox.Idle())
}
