package aggregator

import (
	"context"
	"time"
)

// expire removes expired series. It returns the time until the next one expires.
// That is at most the TTL, as agents report meanwhile.
func (a *Aggregator) expire(now time.Time) time.Duration {
	t := a.since(now)
	a.orphans.removeExpired(t, a)
	next := t + a.ttl()
	var due []*agentSeries
	for i := range a.shards {
		sh := &a.shards[i]
		sh.mu.RLock()
		for _, as := range sh.agents {
			if at := as.deadline.Load(); at <= t {
				due = append(due, as)
			} else {
				next = min(next, at)
			}
		}
		sh.mu.RUnlock()
	}
	// All expired series are dropped before the first agent is removed. Otherwise an
	// agent that it hid would be served, and dropped as well.
	var ended []*agentSeries
	for _, as := range due {
		at, expired, end := a.dropExpired(as, t)
		next = min(next, at)
		if expired > 0 && a.opts.Load().Expired != nil {
			a.opts.Load().Expired(as.id, expired)
		}
		if end {
			ended = append(ended, as)
		}
	}
	for _, as := range ended {
		a.removeEnded(as)
	}
	return time.Duration(next - t)
}

// countOverdue returns how many open agents have not reported for three quarters of the
// TTL. Intervals are lengthened to half of it at most. One that never reported is none.
func (a *Aggregator) countOverdue(now time.Time) (n int) {
	before := a.since(now) - a.ttl()/4*3
	_ = a.walkAgents(context.Background(), func(as *agentSeries) { // which does not end
		as.mu.Lock()
		defer as.mu.Unlock()
		if as.open && as.reported != never && as.reported < before {
			n++
		}
	})
	return n
}

// dropExpired drops the agent's expired series. It returns when the next one expires, how
// many there were if those are all, and whether a closed agent has none left.
func (a *Aggregator) dropExpired(as *agentSeries, t int64) (next int64, all int, ended bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	dropped := 0
	if as.reported+a.ttl() <= t {
		dropped = a.dropAll(as)
		all = dropped
	}
	kept := as.stale[:0]
	for i := range as.stale {
		s := &as.stale[i]
		if s.seen+a.ttl() <= t {
			a.drop(as, &s.series)
			dropped++
			continue
		}
		kept = append(kept, *s)
	}
	clear(as.stale[len(kept):])
	as.stale = kept
	as.removeUnusedFamilies(false)
	a.metrics.expired.Add(float64(dropped))
	next = as.expiresAt(a.ttl())
	as.deadline.Store(next)
	return next, all, !as.open && as.empty()
}

// removeEnded removes an agent unless it has a session again.
func (a *Aggregator) removeEnded(as *agentSeries) {
	a.lifecycleMu.Lock()
	defer a.lifecycleMu.Unlock()
	as.mu.Lock()
	ended := !as.removed && !as.open && as.empty()
	as.mu.Unlock()
	if ended {
		a.remove(as)
	}
}
