package client

import (
	"context"
	"time"

	"github.com/coder/agentstatsd/client/internal/standby"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
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

// drain has the relay end its session once the service has received all. Functions of the
// host that hang are left soon.
func (a *Agent) drain() {
	a.setPresent(false)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.standby.Draining = true
	a.leave()
	a.hurry()
	a.signal()
}

// settledLocked reports whether no ack is waited for. Of a relay that is to end that is
// so when the open session has had all received: the service stores it by itself.
func (a *Agent) settledLocked() bool {
	if a.outbox.Idle() {
		return true
	}
	_, due := a.outbox.DueAt()
	return a.standby.Draining && !due && a.received >= a.sent && (a.isOpen || a.drained)
}

// restoreLifecycle is SetLifecycle with a state of before. It does nothing if a newer one
// was set.
func (a *Agent) restoreLifecycle(state agentstatsv1.Lifecycle_State, changedAt time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if changedAt.After(a.lifecycleAt) {
		a.setLifecycleLocked(state, changedAt)
	}
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
		wait := a.standby.Wait(time.Now(), a.settledLocked())
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
	ends, wait = a.standby.Ends(time.Now(), a.settledLocked())
	a.drained = a.drained || ends && a.standby.Draining
	return ends, wait
}
