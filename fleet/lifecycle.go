package fleet

import (
	"time"

	"github.com/coder/agentstatsd/agent"
)

// SetLifecycle records the lifecycle, unless a newer one is known, as
// agent.LifecycleClaim says. The request's ack is pending until it is stored. A
// ChangedAt that is zero, after the receipt, or before the agent's build is replaced by
// the time of receipt. If the state is a repeated one, it keeps its time instead.
func (r Request) SetLifecycle(l agent.Lifecycle) {
	if reason := r.entry.reg.Load().ClampedTime(l.ChangedAt, r.now); reason != "" {
		r.fleet.metrics.clampedTimes.WithLabelValues(reason).Inc()
		l.ChangedAt = time.Time{}
	}
	ended := false
	r.changeState(func(s *agent.State) (notify bool) {
		notify = s.CurrentLifecycle() != l.State
		if l.ChangedAt.IsZero() {
			l.ChangedAt = r.now
			if !notify && !s.Lifecycle.ChangedAt.IsZero() {
				l.ChangedAt = s.Lifecycle.ChangedAt
			}
		}
		claim := r.claimLocked(l)
		if !claim.Replaces(s.Lifecycle, s.LifecycleOrder) {
			return false
		}
		r.entry.state.lifecycleFrom = r.session.info.Instance
		changed := s.SetLifecycle(l, claim.Order)
		ended = changed && s.Startup.Result == l.State
		return changed && notify
	})
	if ended {
		r.fleet.queueFinishedBuild(r.entry)
	}
}

// claimLocked returns how the lifecycle is said.
func (r Request) claimLocked(l agent.Lifecycle) agent.LifecycleClaim {
	e, s := r.entry, r.session
	known := e.state.newest.LifecycleOrder.Epoch
	c := agent.LifecycleClaim{
		Lifecycle: l, Order: r.order,
		First: !s.saidLifecycle,
		Own:   !s.hello.Relayed && s.hello.Ordinal == 1,
		Same:  e.state.lifecycleFrom == s.info.Instance || s.hello.Epoch != 0 && s.hello.Epoch == known,
	}
	s.saidLifecycle = true
	if s.hello.Relayed && c.Order.Basis != 0 && c.IsLate() {
		// It replaces what it was compared with, not what another replica stored since.
		c.Order.Basis, c.Order.Previous = max(1, min(c.Order.Basis, known)), s.hello.Epoch
	}
	return c
}
