package registrations

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/internal/backoff"
)

// Of several bridges one syncs: the one to which the service has granted the task. The
// others read from the service what is registered.
const (
	syncTask = "bridge: sync"
	// maxTaskTime is the longest time for which the service grants a task.
	maxTaskTime = time.Hour
	// followWait is between two attempts to get the task.
	followWait = time.Minute
	// releaseTimeout bounds the time to give it back at the end.
	releaseTimeout = 2 * time.Second

	// Each bridge has a task of its own, by which all count each other, each shareWait. One
	// that was killed counts for shareTime.
	sharePrefix  = "bridge: reads coderd, "
	shareTime    = 90 * time.Second
	shareWait    = 30 * time.Second
	shareTimeout = 5 * time.Second
)

// share takes this bridge's part of the requests that all bridges together may make of
// coderd. If the service does not say how many there are, it stays as it was.
func (r *Registrations) share(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, shareTimeout)
	defer cancel()
	_, n, err := r.service.AcquireCountedTasks(ctx, r.holder, shareTime, sharePrefix, sharePrefix+r.holder.String())
	if err != nil {
		r.log.Debug("agentstatsd does not say how many bridges there are", "error", err)
		return
	}
	n = max(1, n)
	r.coder.SetShare(n)
	r.metrics.sharing.Set(float64(n))
}

func (r *Registrations) runShare(ctx context.Context) {
	for backoff.Sleep(ctx, shareWait) {
		r.share(ctx)
	}
}

// acquireSync acquires the task to sync until the sync after the next one is due. It
// returns whether this bridge has it. A service that grants no tasks has one bridge.
func (r *Registrations) acquireSync(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	granted, err := r.service.AcquireTasks(ctx, r.holder, min(2*r.SyncInterval(), maxTaskTime), syncTask)
	switch {
	case status.Code(err) == codes.Unimplemented:
		return true, nil
	case err != nil:
		return false, fmt.Errorf("%w: %w", errService, err)
	}
	return len(granted) > 0, nil
}

// releaseTasks gives the tasks back, so that another bridge need not wait.
func (r *Registrations) releaseTasks() {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	if _, err := r.service.AcquireTasks(ctx, r.holder, 0, syncTask, sharePrefix+r.holder.String()); err != nil {
		r.log.Debug("the tasks of this bridge expire, as they could not be given back", "error", err)
	}
}

// follow reads which agents are registered.
func (r *Registrations) follow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	agents := make(map[uuid.UUID]uuid.UUID)
	for agent, err := range r.service.Agents(ctx) {
		if err != nil {
			return fmt.Errorf("%w: %w", errService, err)
		}
		id, err := uuid.FromBytes(agent.GetId())
		workspace, invalid := uuid.FromBytes(agent.GetWorkspace().GetId())
		if err == nil && invalid == nil {
			agents[id] = workspace
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := make(map[uuid.UUID]registered, len(agents))
	for id, workspace := range agents {
		known[id] = registered{workspace: workspace}
		if was, again := r.agents[id]; again {
			known[id] = was
		}
	}
	r.agents = known
	return nil
}
