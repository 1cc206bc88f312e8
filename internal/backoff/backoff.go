// Package backoff spaces the attempts at what fails: a call of the database, a
// connection, a load.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff bounds the waits between attempts. The first wait is Min, each further one
// twice the one before, at most Max. The second half of each is random, so that
// those who failed together do not come back together.
type Backoff struct {
	// Min and Max are above 0, Min at most Max.
	Min, Max time.Duration
	// Random draws the random half, within [0, 1); nil: rand.Float64. Simulations give
	// one that follows from their seed.
	Random func() float64
}

// Delay returns the time to wait after failures > 0 failed attempts in a row. It is
// safe for concurrent use if Random is.
func (b Backoff) Delay(failures int) time.Duration {
	wait := b.Min
	for n := 1; n < failures && wait < b.Max; n++ {
		wait *= 2 // below Max, so that it cannot overflow
	}
	wait = min(wait, b.Max)
	random := rand.Float64
	if b.Random != nil {
		random = b.Random
	}
	return wait/2 + time.Duration(random()*float64(wait/2))
}

// Wait waits for Delay(failures). It returns false if ctx ended first.
func (b Backoff) Wait(ctx context.Context, failures int) bool {
	return Sleep(ctx, b.Delay(failures))
}

// Sleep waits for d. It returns false if ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
