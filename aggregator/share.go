package aggregator

import (
	"sync/atomic"

	"github.com/coder/agentstatsd/metrics"
)

// owner is a user with what all of their agents forward together.
type owner struct {
	series, bytes atomic.Int64
	// agents is guarded by Aggregator.life.
	agents int
}

// setOwner counts the source's series as those of its identity's owner. The
// caller holds life and, if others know the source, its mutex.
func (a *Aggregator) setOwner(src *source) {
	to := a.owners[src.ident.Username]
	if to == nil {
		to = &owner{}
		a.owners[src.ident.Username] = to
	}
	to.agents++
	to.series.Add(src.count)
	to.bytes.Add(src.bytes)
	src.owner = to
}

// unsetOwner takes the source's series from its identity's owner. It is called
// like setOwner.
func (a *Aggregator) unsetOwner(src *source) {
	from := src.owner
	if from == nil {
		return
	}
	src.owner = nil
	from.series.Add(-src.count)
	from.bytes.Add(-src.bytes)
	if from.agents--; from.agents == 0 {
		delete(a.owners, src.ident.Username)
	}
}

// reserve takes room for a series with that many bytes of name and labels; a
// reason if the agent, its owner or all agents have none left.
func (a *Aggregator) reserve(src *source, bytes int64) metrics.Reason {
	o := src.owner
	switch {
	case src.count >= int64(a.opts.MaxSeriesPerAgent):
		return reasonAgentSeries
	case src.bytes+bytes > int64(a.opts.MaxSeriesBytesPerAgent):
		return reasonAgentBytes
	case o.series.Add(1) > int64(a.opts.MaxSeriesPerOwner):
		o.series.Add(-1)
		return reasonOwnerSeries
	case o.bytes.Add(bytes) > int64(a.opts.MaxSeriesBytesPerOwner):
		o.series.Add(-1)
		o.bytes.Add(-bytes)
		return reasonOwnerBytes
	}
	reason := a.reserveOfAll(bytes)
	if reason != "" {
		o.series.Add(-1)
		o.bytes.Add(-bytes)
		return reason
	}
	src.count++
	src.bytes += bytes
	return ""
}

// reserveOfAll takes room of what all agents share, which sums without agents
// have to yield.
func (a *Aggregator) reserveOfAll(bytes int64) metrics.Reason {
	for a.series.Add(1) > int64(a.opts.MaxSeries) {
		a.series.Add(-1)
		if !a.ghosts.evict(a) {
			return reasonTooManySeries
		}
	}
	for a.seriesBytes.Add(bytes) > int64(a.opts.MaxSeriesBytes) {
		a.seriesBytes.Add(-bytes)
		if !a.ghosts.evict(a) {
			a.series.Add(-1)
			return reasonTooManyBytes
		}
	}
	return ""
}

// unreserve gives back the room of a series.
func (a *Aggregator) unreserve(src *source, bytes int64) {
	src.count--
	src.bytes -= bytes
	src.owner.series.Add(-1)
	src.owner.bytes.Add(-bytes)
	a.series.Add(-1)
	a.seriesBytes.Add(-bytes)
}
