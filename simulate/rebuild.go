package simulate

import (
	"context"
	"time"

	"github.com/coder/agentstatsd/internal/backoff"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// goodbyeTimeout bounds how long an agent that has nothing left to say takes
	// to leave.
	goodbyeTimeout = 5 * time.Second
	// longestStop is how long a workspace is stopped at most.
	longestStop = 8 * time.Second
)

// workspace is a workspace that runs.
type workspace struct {
	plannedWorkspace
	// busy is true while it is rebuilt.
	busy bool
}

// rebuilt is the end of a rebuild.
type rebuilt struct {
	planned plannedWorkspace
	agents  []*agent
}

// untilRebuild returns the time to the next rebuild.
func (f *fleet) untilRebuild() time.Duration {
	return max(time.Millisecond, time.Duration(f.random.ExpFloat64()*float64(f.opts.RebuildInterval)))
}

// rebuildOne begins to rebuild a workspace, unless the one that it chooses is
// being rebuilt or has agents that have not started.
func (f *fleet) rebuildOne(ctx context.Context, now time.Time) {
	w := &f.workspaces[f.random.IntN(len(f.workspaces))]
	agents := f.running(w)
	for _, a := range agents {
		if a.state == agentstatsv1.Lifecycle_STATE_CREATED || a.state == 0 {
			return
		}
	}
	if w.busy {
		return
	}
	w.busy = true
	ends := make([]agentstatsv1.Lifecycle_State, len(agents))
	for i, a := range agents {
		ends[i] = a.shutDown(now)
	}
	// Half of all rebuilds are a stop and a later start; the others, and a claim,
	// replace agents that are still known.
	var stopped time.Duration
	if !w.isPrebuild() && f.random.IntN(2) == 0 {
		stopped = time.Second + time.Duration(f.random.Float64()*float64(longestStop-time.Second))
	}
	number := w.number
	f.rebuilding.Go(func() {
		for i, a := range agents {
			if a.sayGoodbye(ctx, ends[i]) != nil {
				return
			}
		}
		r, err := f.rebuild(ctx, number, stopped)
		if err != nil {
			if ctx.Err() == nil {
				f.observer.unexpected.Add(1)
				f.observer.log.WarnContext(ctx, "rebuild of a workspace", "error", err)
			}
			return
		}
		select {
		case f.rebuilt <- r:
		case <-ctx.Done():
		}
	})
}

// sayGoodbye waits for all acks of the agent, then ends it with a
// goodbye. If ctx ends first, the agent goes on, and is to be drained.
func (a *agent) sayGoodbye(ctx context.Context, end agentstatsv1.Lifecycle_State) error {
	if err := a.client.Flush(ctx); err != nil {
		return err
	}
	a.client.SetLifecycle(end, time.Now())
	if err := a.client.Flush(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTimeout)
	defer cancel()
	a.presence.endSession(time.Now())
	// A goodbye that is lost is no loss: the agent is deregistered next.
	_ = a.client.Close(ctx)
	return nil
}

// rebuild makes a new build of a workspace whose agents have left, after it was
// stopped for a time; 0: not at all.
func (f *fleet) rebuild(ctx context.Context, number int, stopped time.Duration) (rebuilt, error) {
	if stopped > 0 {
		if err := f.coderd.stop(ctx, number); err != nil {
			return rebuilt{}, err
		}
		if !backoff.Sleep(ctx, stopped) {
			return rebuilt{}, ctx.Err()
		}
	}
	planned, err := f.coderd.start(ctx, number)
	if err != nil {
		return rebuilt{}, err
	}
	agents, err := f.agentsOf(planned)
	return rebuilt{planned, agents}, err
}

// running returns the agents that a workspace has now.
func (f *fleet) running(w *workspace) []*agent {
	if w.unreachable {
		return nil
	}
	return f.agents[w.firstAgent : w.firstAgent+w.agentCount]
}

// replace lets new agents take the place of those of the build before, and
// returns them.
func (f *fleet) replace(r rebuilt) []*agent {
	w := &f.workspaces[r.planned.number]
	*w = workspace{plannedWorkspace: r.planned}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.running(w) {
		f.former.add(a)
	}
	copy(f.running(w), r.agents)
	f.rebuilds++
	return r.agents
}
