package simulate

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
)

const (
	// firstRegisterTimeout bounds the wait for a service that is just starting.
	firstRegisterTimeout = 15 * time.Second
	// deregisterTimeout bounds the end.
	deregisterTimeout = 15 * time.Second
	retryInterval     = 500 * time.Millisecond
	// registerInterval is the time between two registrations of the whole
	// fleet, as coderd repeats them in case the service lost its database.
	registerInterval = time.Minute
	// minRegisterInterval bounds how often an unknown agent causes one.
	minRegisterInterval = 5 * time.Second
)

// coderd is the simulated coderd.
type coderd struct {
	client *client.Coderd
	plan   plan
	log    *slog.Logger
}

// register makes the fleet known.
func (c *coderd) register(ctx context.Context) error {
	registered, err := c.client.Register(ctx, c.plan.registrations(), nil)
	if err != nil {
		return err
	}
	if n := len(registered.Stale); n > 0 {
		return fmt.Errorf("register agents: %d are known in a newer build: another fleet of this name runs", n)
	}
	return nil
}

// retry calls f until it returns nil or an error that waiting does not cure, or
// the timeout is over. Then it returns the last error of the service.
func retry(ctx context.Context, timeout time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var unavailable error
	for {
		err := f(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return cmp.Or(unavailable, err)
		case status.Code(err) != codes.Unavailable:
			return err
		}
		unavailable = err
		timer := time.NewTimer(retryInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// run keeps the fleet known until ctx is cancelled.
func (c *coderd) run(ctx context.Context, unknown <-chan struct{}) {
	ticker := time.NewTicker(registerInterval)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-unknown:
			if time.Since(last) < minRegisterInterval {
				continue
			}
		}
		last = time.Now()
		if err := c.register(ctx); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "registering again", "error", err)
		}
	}
}

// deregister makes the service forget the fleet.
func (c *coderd) deregister(ctx context.Context) error {
	return retry(ctx, deregisterTimeout, func(ctx context.Context) error {
		_, err := c.client.Deregister(ctx, nil, c.plan.workspaces)
		return err
	})
}
