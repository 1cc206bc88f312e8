package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Values of the label status of a build, the worst first.
const (
	buildError   = "error"
	buildTimeout = "timeout"
	buildSuccess = "success"
)

// finishedBuild is a build all of whose agents have started, well or not.
type finishedBuild struct {
	workspace *workspace
	labels    agent.Workspace
	status    string
	seconds   float64
}

// finishBuild looks whether the newest build of the agent's workspace is
// finished, and if so has it observed once it is recorded. It is called with no
// entry locked.
func (f *Fleet) finishBuild(e *entry) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if w := f.roster.workspaces[e.reg.Load().Workspace.ID]; w != nil {
		f.finishBuildOf(w)
	}
}

// finishBuildOf is called while the roster does not change.
func (f *Fleet) finishBuildOf(w *workspace) {
	build := &w.Build
	if build.ID == (agent.ID{}) || build.CreatedAt.IsZero() || w.observedBuild() == build.ID {
		return
	}
	if b, finished := finished(w); finished {
		f.writes.addBuild(build.ID, b)
	}
}

// observedBuild returns the build that is known to be recorded.
func (w *workspace) observedBuild() agent.ID {
	if id := w.observed.Load(); id != nil {
		return *id
	}
	return agent.ID{}
}

// finished returns the workspace's build if it is: it has agents, and each has
// come to the end of its start. Sub-agents do not count, nor do agents that are
// older than the build and so another one's. A build that is younger than its
// agents' starts, by clocks that differ, took no time.
func finished(w *workspace) (finishedBuild, bool) {
	var last time.Time
	status := buildSuccess
	for _, e := range w.agents {
		reg := e.reg.Load()
		if reg.Parent != (agent.ID{}) || reg.CreatedAt.Before(w.Build.CreatedAt) {
			continue
		}
		e.mu.Lock()
		s := e.state.Startup
		e.mu.Unlock()
		switch {
		case s.ReadyAt.IsZero():
			return finishedBuild{}, false
		case s.Result == agent.LifecycleStartError:
			status = buildError
		case s.Result == agent.LifecycleStartTimeout && status != buildError:
			status = buildTimeout
		}
		if s.ReadyAt.After(last) {
			last = s.ReadyAt
		}
	}
	return finishedBuild{
		workspace: w,
		labels:    w.Workspace,
		status:    status,
		seconds:   max(0, last.Sub(w.Build.CreatedAt).Seconds()),
	}, !last.IsZero()
}

// writeBuilds records the builds that finished, and observes those that nobody
// recorded before. A build is observed after its record is durable: if the
// process dies between the two, or the database takes the record and says that
// it did not, the build is never observed, which is better than twice.
func (f *Fleet) writeBuilds(ctx context.Context) error {
	builds := f.writes.takeBuilds()
	if len(builds) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.opts.WriteTimeout)
	defer cancel()
	now := time.Now()
	fresh, err := f.store.ObserveBuilds(ctx, slices.Collect(maps.Keys(builds)), now)
	if err != nil {
		f.metrics.writeErrors.WithLabelValues("builds").Inc()
		f.writes.putBackBuilds(builds)
		return fmt.Errorf("record observed builds: %w", err)
	}
	for _, id := range fresh {
		b := builds[id]
		f.metrics.builds.observe(&b, now)
	}
	for _, b := range builds {
		b.workspace.observed.Store(&b.labels.Build.ID)
	}
	return nil
}
