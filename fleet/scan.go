package fleet

import (
	"context"
	"time"

	"github.com/coder/agentstatsd/fleet/internal/durations"
)

// scanInterval bounds the delay between a session's age and its end.
const scanInterval = time.Second

func (f *Fleet) runScans(ctx context.Context) {
	ticker := time.NewTicker(scanInterval)
	defer ticker.Stop()
	templates := time.NewTicker(durations.ScanInterval)
	defer templates.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			f.scan(now)
		case now := <-templates.C:
			f.removeStaleTemplates(now)
		}
	}
}

// scan asks aged sessions to reconnect, ends those that did not, forgets old
// instances, and publishes statuses that changed with time.
func (f *Fleet) scan(now time.Time) {
	start := time.Now()
	defer func() { f.metrics.collection.Observe(time.Since(start).Seconds()) }()
	f.mu.RLock()
	order := f.registry.order
	f.mu.RUnlock()
	for _, e := range order {
		e.mu.Lock()
		f.scanLocked(e, now)
		e.mu.Unlock()
	}
}

func (f *Fleet) scanLocked(e *entry, now time.Time) {
	if s := e.liveLocked(); s != nil && !s.ageAt.IsZero() && !now.Before(s.ageAt) {
		switch {
		case s.closeAt.IsZero():
			s.closeAt = now.Add(f.opts.Load().SessionGrace)
			s.aged.Store(true)
			s.stream.Wake()
		case !now.Before(s.closeAt):
			f.endSessionLocked(s, EndAged)
			f.closeSeriesLocked(e, s.info.Epoch, false)
		}
	}
	for i := 0; e.active != nil && i < len(e.active.instances); {
		detachedAt := e.active.instances[i].detachedAt
		if detachedAt.IsZero() || now.Sub(detachedAt) < f.opts.Load().InstanceRetention {
			i++
			continue
		}
		e.dropInstanceLocked(i)
	}
	if e.phase != phaseRegistered {
		return
	}
	if f.peers != nil && !f.peers.shares.Member() && e.liveLocked() == nil {
		f.dropRetainedSeriesLocked(e)
	}
	f.countUnwrittenLocked(e)
	if e.active != nil && e.active.live == nil {
		e.releaseLocked(now, f.opts.Load().limits())
	}
	if f.presenceLocked(e, now) != e.presence {
		f.publishPresenceLocked(e, now)
	}
}
