package aggregator

import (
	"sync/atomic"

	"github.com/coder/agentstatsd/metrics"
)

// owner is a user with the totals of what their agents forward.
type owner struct {
	series, bytes atomic.Int64
	// agents is guarded by Aggregator.lifecycleMu.
	agents int
}

// setOwner counts the agent's series as its owner's. The caller holds lifecycleMu,
// and the agent's mutex if the agent is in its shard.
func (a *Aggregator) setOwner(as *agentSeries) {
	to := a.owners[as.ident.Username]
	if to == nil {
		to = &owner{}
		a.owners[as.ident.Username] = to
	}
	to.agents++
	to.series.Add(as.count)
	to.bytes.Add(as.bytes)
	as.owner = to
}

// unsetOwner removes the agent's series from its owner's counts. It is called like
// setOwner.
func (a *Aggregator) unsetOwner(as *agentSeries) {
	from := as.owner
	if from == nil {
		return
	}
	as.owner = nil
	from.series.Add(-as.count)
	from.bytes.Add(-as.bytes)
	if from.agents--; from.agents == 0 {
		delete(a.owners, as.ident.Username)
	}
}

// reserve reserves room for a series with that many bytes of name and labels. It
// returns a reason if the agent, its owner or all agents have none left.
func (a *Aggregator) reserve(as *agentSeries, bytes int64) metrics.Reason {
	o := as.owner
	switch {
	case as.count >= int64(a.opts.Load().MaxSeriesPerAgent):
		return reasonAgentSeries
	case as.bytes+bytes > int64(a.opts.Load().MaxSeriesBytesPerAgent):
		return reasonAgentBytes
	case o.series.Add(1) > int64(a.opts.Load().MaxSeriesPerOwner):
		o.series.Add(-1)
		return reasonOwnerSeries
	case o.bytes.Add(bytes) > int64(a.opts.Load().MaxSeriesBytesPerOwner):
		o.series.Add(-1)
		o.bytes.Add(-bytes)
		return reasonOwnerBytes
	}
	reason := a.reserveShared(bytes)
	if reason != "" {
		o.series.Add(-1)
		o.bytes.Add(-bytes)
		return reason
	}
	as.count++
	as.bytes += bytes
	return ""
}

// reserveShared reserves room of what all agents share. It evicts orphaned groups
// for it.
func (a *Aggregator) reserveShared(bytes int64) metrics.Reason {
	for a.series.Add(1) > int64(a.opts.Load().MaxSeries) {
		a.series.Add(-1)
		if !a.orphans.evictOldest(a) {
			return reasonTooManySeries
		}
	}
	for a.seriesBytes.Add(bytes) > int64(a.opts.Load().MaxSeriesBytes) {
		a.seriesBytes.Add(-bytes)
		if !a.orphans.evictOldest(a) {
			a.series.Add(-1)
			return reasonTooManyBytes
		}
	}
	return ""
}

// unreserve releases the room of a series.
func (a *Aggregator) unreserve(as *agentSeries, bytes int64) {
	as.count--
	as.bytes -= bytes
	as.owner.series.Add(-1)
	as.owner.bytes.Add(-bytes)
	a.series.Add(-1)
	a.seriesBytes.Add(-bytes)
}
