package agent

import (
	"cmp"
	"slices"
	"time"
)

// LifecycleClaim is a lifecycle, and how a session says it.
type LifecycleClaim struct {
	Lifecycle
	Order Order
	// First is true of the first lifecycle that the session says.
	First bool
	// Own is true if it is the first session of an agent's process: that repeats
	// nothing.
	Own bool
	// Same is true if the process, or the relay, also said the newest known lifecycle.
	Same bool
}

// IsLate reports whether the agent may have reached the lifecycle before another one
// that somebody else said earlier: it is repeated after a hello, or comes from an older
// relay. A process, or a relay, knows the order of its own.
func (c *LifecycleClaim) IsLate() bool { return c.First && !c.Own && !c.Same }

// Replaces reports whether the lifecycle takes the place of the newest known one, which
// has the order. Between sessions of one process, and within a session, the order
// decides. If the lifecycle is late, the later time decides, and of equal times the
// later state.
func (c *LifecycleClaim) Replaces(newest Lifecycle, order Order) bool {
	switch {
	case c.Order.Compare(order) <= 0:
		return false
	case order == (Order{}) || !c.IsLate():
		return true
	}
	return cmp.Or(c.ChangedAt.Compare(newest.ChangedAt), cmp.Compare(c.State.rank(), newest.State.rank())) > 0
}

// rank is the place of the state in an agent's life.
func (s LifecycleState) rank() int { return slices.Index(lifecycleStates, s) }

var lifecycleStates = []LifecycleState{
	LifecycleCreated, LifecycleStarting, LifecycleStartTimeout, LifecycleStartError, LifecycleReady,
	LifecycleShuttingDown, LifecycleShutdownTimeout, LifecycleShutdownError, LifecycleOff,
}

// Reasons of ClampedTime.
const (
	ClampedFuture = "future"
	ClampedBuild  = "before_build"
)

// ClampedTime returns why at cannot be a time of the agent's lifecycle that was received
// at now; empty: it can.
func (r *Registration) ClampedTime(at, now time.Time) string {
	built := r.Workspace.Build.CreatedAt
	switch {
	case at.IsZero():
	case at.After(now):
		return ClampedFuture
	case at.Before(built) && !r.CreatedAt.Before(built): // an older agent is of another build
		return ClampedBuild
	}
	return ""
}
