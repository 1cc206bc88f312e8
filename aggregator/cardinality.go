package aggregator

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/aggregator/cardinality"
)

// Cardinality counts series by names of a dimension. It reads what is in memory: the
// references of descriptors, the counts of agents, and for families and labels the
// states. So it takes as long as there are of those, and a few us more for each
// name. The counts are exact, but for what changes meanwhile. A report in progress may count
// for one series more of a descriptor.
//
// It blocks for as long as other calls count, one at a time. It ends early with the error
// of ctx. No lock is held for longer than it takes to read walkStep entries. Reports go on.
func (a *Aggregator) Cardinality(ctx context.Context, q cardinality.Query) (*cardinality.Result, error) {
	if err := q.Validate(); err != nil {
		return nil, fmt.Errorf("cardinality: %w", err)
	}
	done, err := a.beginCounting(ctx)
	if err != nil {
		return nil, fmt.Errorf("cardinality: %w", err)
	}
	defer done()
	c := cardinality.NewCensus(q.Family, q.Label, q.By)
	if err := a.takeCensus(ctx, c, q.Family); err != nil {
		return nil, fmt.Errorf("cardinality: %w", err)
	}
	out := a.totals()
	c.Rank(q.By, cmp.Or(q.Limit, cardinality.DefaultCounts), out)
	if q.Family == "" {
		a.history.Compare(a.now(), q.By, out)
	}
	return out, nil
}

// SampledCardinality returns the largest families, templates or owners as of the newest of the
// samples, which are taken once a minute. It counts nothing. Of the Result it has
// what Names, Counts and GrowthOver are.
func (a *Aggregator) SampledCardinality(by cardinality.Dimension, limit int) *cardinality.Result {
	return a.history.Newest(by, limit)
}

// sampleCardinality counts all series once a minute, so that growth is known.
func (a *Aggregator) sampleCardinality(ctx context.Context) {
	tick := time.NewTicker(cardinality.SampleInterval)
	defer tick.Stop()
	for a.addSample(ctx) == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// addSample returns only the error of ctx.
func (a *Aggregator) addSample(ctx context.Context) error {
	done, err := a.beginCounting(ctx)
	if err != nil {
		return err
	}
	defer done()
	at := a.now()
	c := cardinality.NewCensus("", "", cardinality.AllDimensions()...)
	if err := a.takeCensus(ctx, c, ""); err != nil {
		return err
	}
	a.history.Add(at, c)
	return nil
}

// totals returns the totals of all series.
func (a *Aggregator) totals() *cardinality.Result {
	out := &cardinality.Result{HiddenAgents: int(a.hiddenAgents.Load()), Descriptors: len(a.stats) + len(a.apps)}
	for i := range a.shards {
		a.shards[i].mu.RLock()
		out.Agents += len(a.shards[i].agents)
		a.shards[i].mu.RUnlock()
	}
	a.descs.mu.RLock()
	out.Descriptors += len(a.descs.byKey)
	a.descs.mu.RUnlock()
	out.States = a.states.Len()
	families := a.families.list()
	out.Families = len(families)
	for _, f := range families {
		f.mu.Lock()
		out.Groups += len(f.groups)
		f.mu.Unlock()
	}
	out.Series = max(0, int(a.series.Load())-out.States-out.Groups)
	return out
}

// takeCensus adds all series to the census, of a family if it is not empty. It returns only
// the error of ctx.
func (a *Aggregator) takeCensus(ctx context.Context, c *cardinality.Census, family string) error {
	if c.NeedsSeries() {
		if err := a.walkDescs(ctx, func(d *desc, n int) { c.Add(d.name, d.labels, n) }); err != nil {
			return err
		}
		if err := a.states.Walk(ctx, c.AddState); err != nil {
			return err
		}
	}
	of := a.families.get(family)
	if !c.NeedsAgents() || family != "" && of == nil {
		return nil
	}
	return a.walkAgents(ctx, func(as *agentSeries) {
		n := as.countSeries(of)
		c.AddAgent(&n)
	})
}

// beginCounting waits until no other call counts. done must be called.
func (a *Aggregator) beginCounting(ctx context.Context) (done func(), err error) {
	select {
	case a.counting <- struct{}{}:
		return func() { <-a.counting }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// countSeries counts the agent's series of a family; nil: of all.
func (as *agentSeries) countSeries(f *family) cardinality.Agent {
	as.mu.Lock()
	defer as.mu.Unlock()
	n := cardinality.Agent{ID: as.id, Identity: as.ident, Forwarded: int(as.count)}
	if f != nil {
		n.Forwarded = 0
		if of := as.familyOf(f); of != nil {
			n.Forwarded = int(of.series)
		}
	}
	for i := range as.gauges {
		if d := as.gauges[i].desc; d != nil && (f == nil || d.family == f) {
			n.Computed++
		}
	}
	for i := range as.sessions {
		if f == nil || as.sessions[i].desc.family == f {
			n.Computed++
		}
	}
	return n
}
