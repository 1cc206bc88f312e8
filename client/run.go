package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client/internal/recovery"
	"github.com/coder/agentstatsd/client/internal/standby"
)

// Run keeps a session with the service until ctx is cancelled, which ends it
// without a goodbye, or until Close. Then it returns nil. It retries whatever
// goes wrong, also a refused token: the service may not know the agent yet. It
// returns an error only if it is running already. After a cancelled Run it may
// be called again: the instance lives on.
func (a *Agent) Run(ctx context.Context) error {
	run, err := a.begin(ctx)
	if err == nil {
		run()
	}
	return err
}

// begin makes the Agent one that is running. Its result keeps the session.
func (a *Agent) begin(ctx context.Context) (run func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped != nil {
		cancel()
		return nil, errors.New("run agent: is running already")
	}
	if a.closing {
		return cancel, nil
	}
	stopped := make(chan struct{})
	a.stopped, a.cancel = stopped, cancel
	leaving, leave := context.WithCancel(ctx)
	hurried, hurry := context.WithCancel(ctx)
	a.leave, a.hurry = leave, hurry
	return func() {
		defer cancel()
		a.callbacks.endWith(leaving)
		a.keepSession(ctx, hurried.Done())
		a.mu.Lock()
		a.stopped, a.cancel = nil, nil
		a.mu.Unlock()
		a.setState(State{Connection: Stopped})
		close(stopped)
	}, nil
}

// keepSession keeps a session until ctx is cancelled, or until Close. When hurried is
// closed, the wait for the next attempt is cut short once.
func (a *Agent) keepSession(ctx context.Context, hurried <-chan struct{}) {
	defer func() { a.failures.Unneeded(ctx, time.Now()) }()
	for attempt := 0; a.awaitReason(ctx); attempt++ {
		end := a.session(ctx)
		if end.closed || ctx.Err() != nil {
			return
		}
		if errors.Is(end.err, standby.ErrNothingLeft) {
			attempt = -1
			continue
		}
		if end.lived {
			attempt = 0
		}
		ended := end.err
		if a.registration != nil {
			var registered bool
			if registered, end.err = a.registration.afterSession(ctx, end.err, a.Status().Counts.Sessions); registered {
				a.log.DebugContext(ctx, "relayed agent registered")
				continue
			}
		}
		wait := end.delay + a.opts.Backoff.wait(attempt)
		var others *recovery.Recovery
		a.setState(State{Connection: Waiting, Err: end.err, Wait: wait})
		attrs := []any{"error", end.err, "retry_in", wait}
		if code := status.Code(ended); code == codes.Aborted || errors.Is(ended, errReconnect) {
			// It moves, and is not without a session.
			a.failures.Unneeded(ctx, time.Now())
			a.log.Log(ctx, a.routine, "session ended", attrs...)
		} else {
			a.failures.Failed(ctx, time.Now(), code, append(attrs, hint(ended)...)...)
			if code == codes.Unavailable && end.delay == 0 {
				others = a.recovery
			}
		}
		again, done := others.Wait()
		if sleep(ctx, wait, again, hurried) {
			hurried, attempt = nil, -1
		}
		done()
		if ctx.Err() != nil {
			return
		}
	}
}

// sleep waits for so long, as long as again says from then on, or until hurried is closed
// or ctx ends. It returns whether hurried was.
func sleep(ctx context.Context, wait time.Duration, again <-chan time.Duration, hurried <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return false
		case wait := <-again:
			timer.Reset(wait)
		case <-hurried:
			return true
		case <-ctx.Done():
			return false
		}
	}
}
