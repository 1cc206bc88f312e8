// Package passes makes reads of what other replicas wrote, which callers wait for together.
package passes

import (
	"context"
	"sync"
	"time"
)

// Passes are made one after another. Its methods are safe for concurrent use, but for Run.
type Passes struct {
	// wake has an element while a pass is asked for.
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu.

	// next is the pass that waiting callers joined; nil: nobody waits.
	next *Pass
	err  error // of the last pass
}

// New returns passes of which none is made yet.
func New() *Passes { return &Passes{wake: make(chan struct{}, 1)} }

// Pass is one read.
type Pass struct {
	done chan struct{}
	err  error // set before done is closed
}

// Done returns a channel that is closed when the pass has ended.
func (p *Pass) Done() <-chan struct{} { return p.done }

// Err returns the outcome, once Done is closed.
func (p *Pass) Err() error { return p.err }

// Ask asks for a pass, which starts after this call.
func (p *Passes) Ask() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Join asks for a pass, and returns it. It starts after this call.
func (p *Passes) Join() *Pass {
	defer p.Ask()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nextLocked()
}

func (p *Passes) nextLocked() *Pass {
	if p.next == nil {
		p.next = &Pass{done: make(chan struct{})}
	}
	return p.next
}

// Run calls read for each pass that is asked for, and every interval, until ctx is cancelled.
// Between two calls there is a pause. The pass that is asked for at the end has the error of
// ctx.
func (p *Passes) Run(ctx context.Context, interval, pause time.Duration, read func(context.Context) error) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	paused := time.NewTimer(0)
	defer paused.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-ticker.C:
		}
		select {
		case <-ctx.Done():
		case <-paused.C:
		}
		made := p.start()
		if ctx.Err() != nil {
			p.finish(made, ctx.Err())
			return
		}
		p.finish(made, read(ctx))
		paused.Reset(pause)
	}
}

// start returns the pass to make. Nobody can join it any more.
func (p *Passes) start() *Pass {
	p.mu.Lock()
	defer p.mu.Unlock()
	made := p.nextLocked()
	p.next = nil
	return made
}

// finish hands the outcome to those who joined.
func (p *Passes) finish(made *Pass, err error) {
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	made.err = err
	close(made.done)
}

// Err returns the outcome of the last pass.
func (p *Passes) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
