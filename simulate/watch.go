package simulate

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/backoff"
)

const (
	// watchStartTimeout bounds the wait until the subscription counts.
	watchStartTimeout = 30 * time.Second
	// watchEndTimeout bounds the wait for the last reports: they are written within a
	// second, and sent within another.
	watchEndTimeout = 10 * time.Second
	// checkInterval is the time between two checks of that.
	checkInterval = 500 * time.Millisecond
	// activityInterval is how often coderd extends the deadline of a workspace in use.
	activityInterval = time.Minute
)

// WatchSummary counts the reports of agents that coderd received, those of other fleets
// included.
type WatchSummary struct {
	// Batches, and the reports in them.
	Batches int64 `json:"batches"`
	Reports int64 `json:"reports"`
	// Uses of workspaces, at most one a workspace and minute.
	Uses int64 `json:"uses"`
}

// statsWatcher is coderd's watch of reports. It keeps in memory what a real coderd
// stores in one transaction: the position and the sums.
type statsWatcher struct {
	client   *client.Coderd
	name     string
	activity *client.Activity
	log      *slog.Logger
	started  chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	position client.StatsPosition
	received WatchSummary
}

func newStatsWatcher(c *client.Coderd, name string, log *slog.Logger) *statsWatcher {
	return &statsWatcher{client: c, name: name, activity: client.NewActivity(activityInterval), log: log, started: make(chan struct{})}
}

// run watches until ctx ends.
func (w *statsWatcher) run(ctx context.Context) {
	started := sync.OnceFunc(func() { close(w.started) })
	err := w.client.WatchStats(ctx, client.StatsWatch{
		Name:    w.name,
		Load:    func(context.Context) (client.StatsPosition, error) { return w.stored(), nil },
		Handle:  w.handle,
		Started: func(time.Time) { started() },
	})
	if err != nil {
		w.log.ErrorContext(ctx, "coderd gets no reports", "error", err)
	}
}

// shortName shortens the name of a fleet so that it fits the name of a watch.
func shortName(fleet string) string {
	return strings.ToValidUTF8(fleet[:min(len(fleet), 48)], "")
}

// awaitStart waits until the subscription counts: all that agents report from then on
// is sent.
func (w *statsWatcher) awaitStart(ctx context.Context) {
	timer := time.NewTimer(watchStartTimeout)
	defer timer.Stop()
	select {
	case <-w.started:
	case <-timer.C:
		w.log.WarnContext(ctx, "the watch of reports has not started: the first ones may not be sent")
	case <-ctx.Done():
	}
}

// awaitEnd waits until that many reports were received, at most for watchEndTimeout.
func (w *statsWatcher) awaitEnd(ctx context.Context, reports int64) {
	ctx, cancel := context.WithTimeout(ctx, watchEndTimeout)
	defer cancel()
	for w.summary().Reports < reports && backoff.Sleep(ctx, checkInterval) {
	}
}

func (w *statsWatcher) stored() client.StatsPosition {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.position
}

// handle stores a batch in memory.
func (w *statsWatcher) handle(batch client.StatsBatch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.position != batch.Previous {
		return fmt.Errorf("stored is %v, not %v", w.position, batch.Previous)
	}
	w.position = batch.Position
	w.received.Batches++
	for _, a := range batch.Agents {
		w.received.Reports += a.GetReports()
	}
	w.received.Uses += int64(len(w.activity.Add(time.Now(), batch.Agents)))
	return nil
}

func (w *statsWatcher) summary() WatchSummary {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.received
}
