package aggregator

import "time"

// expire takes away what has expired, and returns how long nothing more will:
// at most the TTL, for what is reported from now on.
func (a *Aggregator) expire(now time.Time) time.Duration {
	t := a.since(now)
	a.ghosts.expire(t, a)
	next := t + a.ttl
	var due []*source
	for i := range a.shards {
		sh := &a.shards[i]
		sh.mu.RLock()
		for _, src := range sh.sources {
			if at := src.deadline.Load(); at <= t {
				due = append(due, src)
			} else {
				next = min(next, at)
			}
		}
		sh.mu.RUnlock()
	}
	// All series that are due go before the first source does: else those of one
	// that it shadowed would show up, only to go as well.
	var ended []*source
	for _, src := range due {
		at, end := a.dropExpired(src, t)
		next = min(next, at)
		if end {
			ended = append(ended, src)
		}
	}
	for _, src := range ended {
		a.removeEnded(src)
	}
	return time.Duration(next - t)
}

// dropExpired drops what has expired. It returns when more will, and whether
// nothing is left of a source whose session has ended.
func (a *Aggregator) dropExpired(src *source, t int64) (next int64, ended bool) {
	src.mu.Lock()
	defer src.mu.Unlock()
	dropped := 0
	if src.reported+a.ttl <= t {
		dropped = a.dropAll(src)
	}
	kept := src.stale[:0]
	for i := range src.stale {
		s := &src.stale[i]
		if s.seen+a.ttl <= t {
			a.drop(src, &s.series)
			dropped++
			continue
		}
		kept = append(kept, *s)
	}
	clear(src.stale[len(kept):])
	src.stale = kept
	src.tidyFamilies(false)
	a.metrics.expired.Add(float64(dropped))
	next = src.expiresAt(a.ttl)
	src.deadline.Store(next)
	return next, !src.open && src.empty()
}

// removeEnded forgets a source unless it has a session again.
func (a *Aggregator) removeEnded(src *source) {
	a.life.Lock()
	defer a.life.Unlock()
	src.mu.Lock()
	ended := !src.gone && !src.open && src.empty()
	src.mu.Unlock()
	if ended {
		a.remove(src)
	}
}
