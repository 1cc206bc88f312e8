package client

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// defaultCallbackTimeout is how long a function of the host may take: what
	// Prometheus gives a scrape.
	defaultCallbackTimeout = 10 * time.Second
	// leaveTimeout is how long a function may still take after the context of its
	// Run has ended. Within 5 s there is time left for the last messages.
	leaveTimeout = 2 * time.Second
)

var (
	errNegativeTimeout = errors.New("callback timeout: is negative")
	errCallbackLeft    = errors.New("a function of the host has not returned")
)

// callbacks call the functions of the host, in goroutines of their own. So one that
// hangs does not keep its caller.
type callbacks struct {
	timeout time.Duration
	log     *slog.Logger
	// ends has what is closed when Run ends, as a <-chan struct{}.
	ends atomic.Value
}

// endWith has functions that are called from now on left soon after ctx has ended.
func (c *callbacks) endWith(ctx context.Context) { c.ends.Store(ctx.Done()) }

func (c *callbacks) ended() <-chan struct{} {
	ends, _ := c.ends.Load().(<-chan struct{})
	return ends
}

// callback is one function of the host.
//
//	returned --run--> running --returns--> returned
//	                  running --timeout, or leaveTimeout after the end--> left --returns--> returned
type callback struct {
	*callbacks
	name string

	mu sync.Mutex
	// left is the number of calls that did not return in time. While there are
	// any, the function is not called.
	left    int
	skipped int
}

func (c *callbacks) named(name string) *callback { return &callback{callbacks: c, name: name} }

// run calls f, unless an earlier call was left and has not returned. It waits until
// f returns, the timeout is over, or ends was closed the time leave ago. Then it leaves f
// to itself. It reports whether f was called.
func (c *callback) run(ends <-chan struct{}, leave time.Duration, f func()) bool {
	c.mu.Lock()
	if c.left > 0 {
		c.skipped++
		c.mu.Unlock()
		return false
	}
	c.mu.Unlock()
	began, returned := time.Now(), make(chan struct{})
	go func() {
		defer close(returned)
		f()
	}()
	if waitFor(returned, c.timeout, ends, leave) {
		return true
	}
	c.mu.Lock()
	c.left++
	c.mu.Unlock()
	c.log.Warn("function of the host has not returned: it is not called until it does", "function", c.name, "after", time.Since(began))
	go func() {
		<-returned
		c.mu.Lock()
		c.left--
		skipped := c.skipped
		c.skipped = 0
		c.mu.Unlock()
		c.log.Info("function of the host has returned", "function", c.name, "took", time.Since(began), "calls_left_out", skipped)
	}()
	return true
}

// finish calls f and waits until it returns, or ctx has ended leaveTimeout ago: no call
// is left out. It logs a call that takes longer than the timeout. It reports whether f
// has returned.
func (c *callback) finish(ctx context.Context, f func()) bool {
	began, returned := time.Now(), make(chan struct{})
	go func() {
		defer close(returned)
		f()
	}()
	if waitFor(returned, c.timeout, ctx.Done(), leaveTimeout) {
		return true
	}
	c.log.WarnContext(ctx, "function of the host has not returned", "function", c.name, "after", time.Since(began))
	if ctx.Err() != nil {
		return false
	}
	select {
	case <-returned:
	case <-ctx.Done():
		if !waitFor(returned, leaveTimeout, nil, 0) {
			return false
		}
	}
	c.log.InfoContext(ctx, "function of the host has returned", "function", c.name, "took", time.Since(began))
	return true
}

// waitFor waits until returned is closed, but at most for timeout, and for leave after
// ends is closed. It reports whether returned is closed.
func waitFor(returned <-chan struct{}, timeout time.Duration, ends <-chan struct{}, leave time.Duration) bool {
	deadline := time.Now().Add(timeout)
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case <-returned:
			return true
		case <-timer.C:
			return false
		case <-ends:
			ends = nil
			timer.Reset(min(time.Until(deadline), leave))
		}
	}
}

// bound has the functions called through calls. Late reports of Collect go to report.
func (o *AgentOptions) bound(calls *callbacks, report func(*agentstatsv1.Stats)) {
	if collect := o.Collect; collect != nil {
		c := calls.named("Collect")
		o.Collect = func(ctx context.Context) *agentstatsv1.Stats { return c.collect(ctx, collect, report) }
	}
	o.OnState = bounded(calls, "OnState", o.OnState)
	o.OnAck = bounded(calls, "OnAck", o.OnAck)
	o.OnDurable = bounded(calls, "OnDurable", o.OnDurable)
	o.OnRefusal = bounded(calls, "OnRefusal", o.OnRefusal)
}

// bounded returns f so that it is called through calls; nil if it is nil.
func bounded[T any](calls *callbacks, name string, f func(T)) func(T) {
	if f == nil {
		return nil
	}
	c := calls.named(name)
	return func(arg T) { c.run(calls.ended(), leaveTimeout, func() { f(arg) }) }
}

// collect calls an agent's Collect; nil: it has no report in time. What it returns
// later goes to report: its counts are counted.
func (c *callback) collect(
	ctx context.Context, collect func(context.Context) *agentstatsv1.Stats, report func(*agentstatsv1.Stats),
) *agentstatsv1.Stats {
	var (
		mu    sync.Mutex
		left  bool
		stats *agentstatsv1.Stats
	)
	c.run(c.ended(), leaveTimeout, func() {
		bounded, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		collected := collect(bounded)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case !left:
			stats = collected
		case collected != nil:
			report(collected)
		}
	})
	mu.Lock()
	defer mu.Unlock()
	left = true
	return stats
}

// dial returns the connection that the host's function makes. A connection that comes
// too late is closed.
func (c *callback) dial(dial func() (*grpc.ClientConn, error)) (*grpc.ClientConn, error) {
	var (
		mu   sync.Mutex
		left bool
		conn *grpc.ClientConn
		err  = errCallbackLeft
	)
	c.run(c.ended(), leaveTimeout, func() {
		made, failed := dial()
		mu.Lock()
		defer mu.Unlock()
		switch {
		case !left:
			conn, err = made, failed
		case made != nil:
			_ = made.Close()
		}
	})
	mu.Lock()
	defer mu.Unlock()
	left = true
	return conn, err
}
