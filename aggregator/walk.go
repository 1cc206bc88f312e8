package aggregator

import (
	"context"
	"runtime"

	"github.com/coder/agentstatsd/aggregator/internal/walk"
)

// walkAgents calls f with each agent, without a lock.
func (a *Aggregator) walkAgents(ctx context.Context, f func(*agentSeries)) error {
	for i := range a.shards {
		if err := walk.Each(ctx, a.shards[i].mu.RLocker(), a.shards[i].agents, f); err != nil {
			return err
		}
	}
	return nil
}

// walkDescs calls f with each desc and the number of its series, without a lock.
func (a *Aggregator) walkDescs(ctx context.Context, f func(d *desc, n int)) error {
	// Of those that are always there the aggregator has a reference.
	for _, d := range a.stats {
		f(d, int(d.refs.Load())-1)
	}
	for _, d := range a.apps {
		f(d, int(d.refs.Load())-1)
	}
	return walk.Some(ctx, a.descs.mu.RLocker(), a.descs.byKey, func(some []*desc) {
		runtime.KeepAlive(loadDescs(some))
		for _, d := range some {
			f(d, int(d.refs.Load()))
		}
	})
}

// loadDescs reads what descs have, one kind at a time, so that the processor fetches those of many
// descs at once from memory. Of a million, each of which is read when it is counted, most
// of the time is waiting for memory.
func loadDescs(some []*desc) (read int) {
	for _, d := range some {
		read += int(d.refs.Load())
	}
	for _, d := range some {
		for i := range d.labels {
			read += len(d.labels[i].Value)
		}
	}
	for _, d := range some {
		for i := 0; i < len(d.key); i += 64 {
			read += int(d.key[i])
		}
	}
	return read
}
