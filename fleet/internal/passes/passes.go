// Package passes has reads of what other replicas wrote, which callers wait for together.
package passes

import "sync"

// Passes are made one after another. The zero value is ready. Its methods are safe for
// concurrent use.
type Passes struct {
	mu sync.Mutex
	// Guarded by mu.

	// next is the pass that waiting callers joined; nil: nobody waits.
	next *Pass
	err  error // of the last pass
}

// Pass is one read.
type Pass struct {
	done chan struct{}
	err  error // set before done is closed
}

// Done returns a channel that is closed when the pass has ended.
func (p *Pass) Done() <-chan struct{} { return p.done }

// Err returns the outcome, once Done is closed.
func (p *Pass) Err() error { return p.err }

// Join returns the next pass, which starts after this call.
func (p *Passes) Join() *Pass {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = &Pass{done: make(chan struct{})}
	}
	return p.next
}

// Start returns the pass to make. Nobody can join it any more.
func (p *Passes) Start() *Pass {
	next := p.Join()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = nil
	return next
}

// Finish hands the outcome to those who joined.
func (p *Passes) Finish(made *Pass, err error) {
	made.err = err
	close(made.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// Err returns the outcome of the last pass.
func (p *Passes) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
