// Package walk reads maps that others change, some entries at a time.
package walk

import (
	"context"
	"sync"
)

// Step is how many entries of a map are copied under its lock at a time, at some 20 ns each.
const Step = 512

// Each calls f with each value of a map that mu guards, without mu. What is added or removed
// meanwhile may be left out. Each returns the error of ctx if that ends first, and no other.
func Each[K comparable, V any](ctx context.Context, mu sync.Locker, m map[K]V, f func(V)) error {
	return Some(ctx, mu, m, func(some []V) {
		for _, v := range some {
			f(v)
		}
	})
}

// Some is Each that calls f with up to Step values.
func Some[K comparable, V any](ctx context.Context, mu sync.Locker, m map[K]V, f func([]V)) error {
	mu.Lock()
	some := make([]V, 0, min(len(m), Step))
	for _, v := range m {
		if some = append(some, v); len(some) < Step {
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
