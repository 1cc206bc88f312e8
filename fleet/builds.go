package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/durations"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/observations"
)

// finishedBuild is a build whose agents have all ended their start.
type finishedBuild struct {
	workspace *workspace
	labels    *kept.Workspace
	status    string
	seconds   float64
}

// queueFinishedBuild queues the newest build of the agent's workspace to be recorded, if
// it is finished. The caller holds no entry.mu.
func (f *Fleet) queueFinishedBuild(e *entry) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.queueFinishedBuildOf(f.registry.workspaces.Get(e.reg.Load().Workspace.ID))
}

// queueFinishedBuildOf is called while the registry does not change. A workspace that is
// nil is removed.
func (f *Fleet) queueFinishedBuildOf(w *workspace) {
	if w == nil {
		return
	}
	reg := w.reg.Load()
	if reg.BuildID == (agent.ID{}) || reg.BuiltAt().IsZero() || w.observedBuild() == reg.BuildID {
		return
	}
	if b, finished := finished(w); finished {
		f.queue.AddBuild(reg.BuildID, b)
	}
}

// observedBuild returns the build that is known to be recorded; zero: none.
func (w *workspace) observedBuild() agent.ID {
	if id := w.observed.Load(); id != nil {
		return *id
	}
	return agent.ID{}
}

// finished returns the workspace's build if it is finished: it has agents, and each
// ended its start. Sub-agents do not count. Agents older than the build belong to
// another one. If clocks differ, the duration is at least 0.
func finished(w *workspace) (finishedBuild, bool) {
	var last time.Time
	built := w.reg.Load().BuiltAt()
	status := durations.StatusSuccess
	for _, e := range w.agents {
		reg := e.reg.Load()
		if reg.Parent() != (agent.ID{}) || reg.CreatedAt().Before(built) {
			continue
		}
		observed, said := reg.Observed(), &agent.State{}
		e.mu.Lock()
		if e.past != nil {
			said = e.stateLocked(said)
		}
		s := observations.Startup(said, &observed)
		e.mu.Unlock()
		if s.ReadyAt.IsZero() {
			return finishedBuild{}, false
		}
		status = durations.Worse(status, s.Result)
		if s.ReadyAt.After(last) {
			last = s.ReadyAt
		}
	}
	return finishedBuild{
		workspace: w,
		labels:    w.reg.Load(),
		status:    status,
		seconds:   max(0, last.Sub(built).Seconds()),
	}, !last.IsZero()
}

// writeBuilds records finished builds, and observes those that were not recorded
// before. A build is observed after its record is durable. If the process dies between
// the two, or the outcome of the write is unknown, the build is not observed. That is
// better than twice.
func (f *Fleet) writeBuilds(ctx context.Context) error {
	builds := f.queue.DrainBuilds()
	if len(builds) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.opts.Load().WriteTimeout)
	defer cancel()
	now := time.Now()
	fresh, err := f.store.ObserveBuilds(ctx, slices.Collect(maps.Keys(builds)), now)
	if err != nil {
		f.metrics.writeErrors.WithLabelValues("builds").Inc()
		f.queue.RequeueBuilds(builds)
		return fmt.Errorf("record observed builds: %w", err)
	}
	for _, id := range fresh {
		b := builds[id]
		labels := b.labels.Value()
		f.metrics.builds.Observe(&labels, b.status, b.seconds, now)
	}
	for id, b := range builds {
		b.workspace.observed.Store(&id)
	}
	return nil
}

// removeStaleTemplates removes the build series of removed templates.
func (f *Fleet) removeStaleTemplates(now time.Time) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.metrics.builds.RemoveStale(func(t durations.Template) bool { return f.registry.templates[t] > 0 }, now)
}
