package simulate

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/backoff"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// changeTimeout bounds the change of a small fleet, the wait for a service that is just
	// starting included. changeTime is what it may take longer for each workspace.
	changeTimeout = 15 * time.Second
	changeTime    = 5 * time.Millisecond
	// registerInterval is the time between two registrations of the whole
	// fleet, as coderd repeats them in case the service lost its database.
	registerInterval = time.Minute
	// minRegisterInterval bounds how often an unknown agent causes one.
	minRegisterInterval = 5 * time.Second
)

// retries spaces calls of a service that is unavailable.
var retries = backoff.Backoff{Min: 500 * time.Millisecond, Max: 2 * time.Second}

// coderd is the simulated coderd.
type coderd struct {
	client  *client.Coderd
	planner planner
	log     *slog.Logger

	// changing is a semaphore of one for changes of workspaces, so that the last one
	// is the newest.
	changing   chan struct{}
	workspaces []plannedWorkspace
}

func newCoderd(c *client.Coderd, p planner, workspaces []plannedWorkspace, log *slog.Logger) *coderd {
	return &coderd{client: c, planner: p, workspaces: slices.Clone(workspaces), log: log, changing: make(chan struct{}, 1)}
}

// timeout bounds the first registration and the deregistration of the fleet.
func (c *coderd) timeout() time.Duration {
	return changeTimeout + time.Duration(len(c.workspaces))*changeTime
}

// register registers the fleet.
func (c *coderd) register(ctx context.Context) error {
	return c.changeAlone(ctx, c.registerAll)
}

func (c *coderd) registerAll(ctx context.Context) error {
	var agents []*agentstatsv1.AgentRegistration
	var stopped []*agentstatsv1.Workspace
	for _, w := range c.workspaces {
		if len(w.agents) == 0 {
			stopped = append(stopped, w.workspace)
		}
		for _, a := range w.agents {
			agents = append(agents, a.registration)
		}
	}
	registered, err := c.client.Register(ctx, agents, stopped)
	if err != nil {
		return err
	}
	if n := len(registered.Refused); n > 0 {
		return fmt.Errorf("register agents: %d are refused, the first one for its %s: %s", n, registered.Refused[0].GetField(), registered.Refused[0].GetMessage())
	}
	if n := len(registered.Stale); n > 0 {
		return fmt.Errorf("register agents: %d are known in a newer build: another fleet of this name runs", n)
	}
	return nil
}

// stop deregisters a workspace's agents, and registers the workspace with a build that
// stops it. While the service is unavailable it waits, until ctx ends.
func (c *coderd) stop(ctx context.Context, number int) error {
	return c.change(ctx, func(ctx context.Context) error {
		w := c.workspaces[number]
		ids := make([]uuid.UUID, len(w.agents))
		for i, a := range w.agents {
			ids[i] = a.id
		}
		if _, err := c.client.Deregister(ctx, ids, nil); err != nil {
			return err
		}
		w.build++
		w = c.planner.stop(w, time.Now())
		if _, err := c.client.Register(ctx, nil, []*agentstatsv1.Workspace{w.workspace}); err != nil {
			return err
		}
		c.workspaces[number] = w
		return nil
	})
}

// start registers a workspace with a new build and new agents, which supersede those of
// the build before. It waits like stop.
func (c *coderd) start(ctx context.Context, number int) (plannedWorkspace, error) {
	var w plannedWorkspace
	err := c.change(ctx, func(ctx context.Context) error {
		w = c.workspaces[number]
		w.build++
		w = c.planner.start(w, time.Now())
		agents := make([]*agentstatsv1.AgentRegistration, len(w.agents))
		for i, a := range w.agents {
			agents[i] = a.registration
		}
		if _, err := c.client.Register(ctx, agents, nil); err != nil {
			return err
		}
		c.workspaces[number] = w
		return nil
	})
	return w, err
}

// changeAlone calls f while no other change of workspaces is under way.
func (c *coderd) changeAlone(ctx context.Context, f func(context.Context) error) error {
	select {
	case c.changing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.changing }()
	return f(ctx)
}

// change calls changeAlone while the service is unavailable, until ctx ends.
func (c *coderd) change(ctx context.Context, f func(context.Context) error) error {
	for failures := 1; ; failures++ {
		err := c.changeAlone(ctx, f)
		if status.Code(err) != codes.Unavailable || !retries.Wait(ctx, failures) {
			return err
		}
	}
}

// retry calls f until it returns nil or an error that waiting does not cure, or
// the timeout is over. Then it returns the last error of the service.
func retry(ctx context.Context, timeout time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var unavailable error
	for failures := 1; ; failures++ {
		err := f(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return cmp.Or(unavailable, err)
		case status.Code(err) != codes.Unavailable:
			return err
		}
		unavailable = err
		if !retries.Wait(ctx, failures) {
			return err
		}
	}
}

// run registers the fleet again from time to time, and when the service does not know
// an agent, until ctx is cancelled.
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

// deregister deregisters the fleet. Nothing else may run.
func (c *coderd) deregister(ctx context.Context) error {
	return retry(ctx, c.timeout(), func(ctx context.Context) error {
		ids := make([]uuid.UUID, len(c.workspaces))
		for i, w := range c.workspaces {
			ids[i] = w.id
		}
		_, err := c.client.Deregister(ctx, nil, ids)
		return err
	})
}
