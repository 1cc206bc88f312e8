package fleet

import (
	"math"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// SetLifecycle records the lifecycle, unless a newer one is known, as
// agent.LifecycleClaim says. The request's ack is pending until it is stored. A ChangedAt
// that is zero, after the receipt, or before the agent's build becomes the time of receipt,
// or said, as Said returns it. A repeated state keeps its time instead.
func (r Request) SetLifecycle(l agent.Lifecycle, said int64) {
	at := r.now
	if said != 0 {
		at = time.Unix(0, said)
	}
	if reason := r.session.reg.Load().ClampedTime(l.ChangedAt, at); reason != "" {
		r.fleet.metrics.clampedTimes.WithLabelValues(reason).Inc()
		l.ChangedAt = time.Time{}
	}
	ended := false
	r.changeState(func(s *agent.State) (notify bool) {
		notify = s.CurrentLifecycle() != l.State
		if l.ChangedAt.IsZero() {
			l.ChangedAt = at
			if !notify && !s.Lifecycle.ChangedAt.IsZero() {
				l.ChangedAt = s.Lifecycle.ChangedAt
			}
		}
		claim := r.claimLocked(l)
		claim.Order.Said = at.UnixNano()
		if !claim.Replaces(s.Lifecycle, s.LifecycleOrder) {
			ended = claim.IsLate() && s.SetLateStartup(l, claim.Order)
			return false
		}
		r.entry.activeLocked().state.lifecycleFrom = r.session.info.Instance
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
	state := &e.activeLocked().state
	known := state.newest.LifecycleOrder.Epoch
	c := agent.LifecycleClaim{
		Lifecycle: l, Order: r.order,
		First: !s.saidLifecycle,
		Own:   !s.hello.Relayed && s.hello.Ordinal == 1,
		Same:  state.lifecycleFrom == s.info.Instance || s.hello.Epoch != 0 && s.hello.Epoch == known,
	}
	s.saidLifecycle = true
	if s.hello.Relayed && c.IsLate() {
		c.Order = r.lateOrder(known)
	}
	return c
}

// lateOrder returns the order of what a relay may have been given before its session
// opened. It was compared with what has the known epoch. It replaces that, not what
// another replica stored since.
func (r Request) lateOrder(known int64) agent.Order {
	order := r.order
	order.Previous = r.session.hello.Epoch
	if order.Basis != 0 {
		order.Basis = max(1, min(order.Basis, known))
	}
	return order
}

// Said returns when a relay was given what has the age, in nanoseconds since 1970. The age
// is the time before the hello of the session. 0: the session says it now, as it has no
// age, or is that of the agent's process.
func (r Request) Said(age time.Duration) int64 {
	if age <= 0 || !r.session.hello.Relayed {
		return 0
	}
	return r.session.openedAt.Add(-age).UnixNano()
}

// LateOrder returns the order of metadata that was said before the session opened.
func (r Request) LateOrder() agent.Order { return r.lateOrder(math.MaxInt64) }

// replaces returns the order of a part of the state, and whether it takes the place of the
// newest known. said is as Said returns it.
func (r Request) replaces(newest agent.Order, said int64) (order agent.Order, ok bool) {
	if said == 0 {
		order, order.Said = r.order, r.now.UnixNano()
		return order, order.Compare(newest) > 0
	}
	order = r.lateOrder(newest.Epoch)
	order.Said = said
	return order, order.Replaces(newest)
}
