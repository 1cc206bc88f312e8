package aggregator

import (
	"context"
	"runtime"
	"sync"
)

// walkStep is how many entries of a map are copied under its lock at a time, at some 20 ns each.
const walkStep = 512

// walk calls f with each value of a map that mu guards, without mu. What is added or removed
// meanwhile may be left out. walk returns the error of ctx if that ends first, and no other.
func walk[K comparable, V any](ctx context.Context, mu sync.Locker, m map[K]V, f func(V)) error {
	return walkSome(ctx, mu, m, func(some []V) {
		for _, v := range some {
			f(v)
		}
	})
}

// walkSome is walk that calls f with up to walkStep values.
func walkSome[K comparable, V any](ctx context.Context, mu sync.Locker, m map[K]V, f func([]V)) error {
	mu.Lock()
	some := make([]V, 0, min(len(m), walkStep))
	for _, v := range m {
		if some = append(some, v); len(some) < walkStep {
			continue
		}
		mu.Unlock()
		f(some)
		some = some[:0]
		if err := ctx.Err(); err != nil {
			return err
		}
		mu.Lock()
	}
	mu.Unlock()
	f(some)
	return ctx.Err()
}

// walkAgents calls f with each agent, without a lock.
func (a *Aggregator) walkAgents(ctx context.Context, f func(*agentSeries)) error {
	for i := range a.shards {
		if err := walk(ctx, a.shards[i].mu.RLocker(), a.shards[i].agents, f); err != nil {
			return err
		}
	}
	return nil
}

// walkStates calls f with each state, without a lock.
func (a *Aggregator) walkStates(ctx context.Context, f func(*stateLine)) error {
	return walk(ctx, &a.states.mu, a.states.byPrefix, f)
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
	return walkSome(ctx, a.descs.mu.RLocker(), a.descs.byKey, func(some []*desc) {
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
