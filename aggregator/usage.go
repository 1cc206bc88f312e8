package aggregator

import (
	"context"
	"sync"
	"time"

	"github.com/coder/agentstatsd/aggregator/internal/walk"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// usageAge is how old a count may be of what the agents and owners have that have the most.
// It takes as long as to lock each agent once.
const usageAge = time.Second

// usage is what the agents and owners have that have the most.
type usage struct {
	mu sync.Mutex
	// Guarded by mu. at is when it was counted, zero: it was not.
	at   time.Time
	most largest
}

// largest has the largest numbers of one agent, and of one owner.
type largest struct {
	agentSeries, agentBytes, agentFamilies int64
	ownerSeries, ownerBytes                int64
}

// limits returns the limits of the aggregator.
func (a *Aggregator) limits() []ownmetrics.Limit {
	most := func(of func(largest) int64) func() float64 {
		return func() float64 { return float64(of(a.largest())) }
	}
	return []ownmetrics.Limit{
		ownmetrics.Of("series", a.opts.Load, func(o *Options) int { return o.MaxSeries }, func() float64 { return float64(a.series.Load()) }),
		ownmetrics.Of("series_per_agent", a.opts.Load, func(o *Options) int { return o.MaxSeriesPerAgent }, most(func(l largest) int64 { return l.agentSeries })),
		ownmetrics.Of("series_per_owner", a.opts.Load, func(o *Options) int { return o.MaxSeriesPerOwner }, most(func(l largest) int64 { return l.ownerSeries })),
		ownmetrics.Of("series_bytes", a.opts.Load, func(o *Options) int { return o.MaxSeriesBytes }, func() float64 { return float64(a.seriesBytes.Load()) }),
		ownmetrics.Of("series_bytes_per_agent", a.opts.Load, func(o *Options) int { return o.MaxSeriesBytesPerAgent }, most(func(l largest) int64 { return l.agentBytes })),
		ownmetrics.Of("series_bytes_per_owner", a.opts.Load, func(o *Options) int { return o.MaxSeriesBytesPerOwner }, most(func(l largest) int64 { return l.ownerBytes })),
		ownmetrics.Of("families", a.opts.Load, func(o *Options) int { return o.MaxFamilies }, ownmetrics.Count(a.families.countUndocumented)),
		ownmetrics.Of("families_per_agent", a.opts.Load, func(o *Options) int { return o.MaxFamiliesPerAgent }, most(func(l largest) int64 { return l.agentFamilies })),
	}
}

// largest counts anew if the count before is old.
func (a *Aggregator) largest() largest {
	a.usage.mu.Lock()
	defer a.usage.mu.Unlock()
	if now := a.now(); a.usage.at.IsZero() || now.Sub(a.usage.at) >= usageAge {
		a.usage.most, a.usage.at = a.countLargest(), now
	}
	return a.usage.most
}

func (a *Aggregator) countLargest() (l largest) {
	_ = a.walkAgents(context.Background(), func(as *agentSeries) {
		as.mu.Lock()
		defer as.mu.Unlock()
		l.agentSeries, l.agentBytes = max(l.agentSeries, as.count), max(l.agentBytes, as.bytes)
		l.agentFamilies = max(l.agentFamilies, int64(len(as.families)))
	})
	// In steps: agents that connect wait for lifecycleMu.
	_ = walk.Each(context.Background(), &a.lifecycleMu, a.owners, func(o *owner) {
		l.ownerSeries, l.ownerBytes = max(l.ownerSeries, o.series.Load()), max(l.ownerBytes, o.bytes.Load())
	})
	return l
}
