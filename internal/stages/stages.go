// Package stages runs tasks, and stops them in an order, each within a bound.
package stages

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Task is what runs.
type Task struct {
	Name string
	// Run blocks until ctx ends and then stops in bounded time.
	Run func(ctx context.Context) error
}

// Stage is what stops together.
type Stage struct {
	Name  string
	Tasks []Task
	// Timeout bounds the wait for the tasks once they are stopped.
	Timeout time.Duration
}

var (
	errEndedEarly = errors.New("ended before it was stopped")
	errNotStopped = errors.New("did not stop in time")
)

// Run runs all tasks of all stages at once. When ctx or a task ends, the stages
// stop one after another. Each is stopped when all tasks of the one before it have
// returned, or its timeout has passed. So what produces stands before what consumes,
// and a stop takes at most the sum of the timeouts. It returns what the tasks
// returned, joined, and errNotStopped for a stage that it left behind.
func Run(ctx context.Context, log *slog.Logger, stages ...Stage) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	running := make([]*runningStage, len(stages))
	for i, s := range stages {
		running[i] = s.start(context.WithoutCancel(ctx), stop)
		defer running[i].cancel()
	}
	<-ctx.Done()
	log.Info("stopping")
	var errs []error
	for _, s := range running {
		errs = append(errs, s.stop(log))
	}
	return errors.Join(errs...)
}

// runningStage is a stage whose tasks have begun.
type runningStage struct {
	Stage
	cancel context.CancelFunc
	ended  chan struct{} // closed when all tasks have returned

	mu   sync.Mutex
	left []string // names of the tasks that run
	errs []error
}

// start runs the tasks until ctx or the stage's own context ends. A task that
// ends earlier calls stopAll.
func (s Stage) start(ctx context.Context, stopAll func()) *runningStage {
	ctx, cancel := context.WithCancel(ctx)
	r := &runningStage{Stage: s, cancel: cancel, ended: make(chan struct{})}
	var group sync.WaitGroup
	for _, t := range s.Tasks {
		r.left = append(r.left, t.Name)
		group.Go(func() {
			err := t.Run(ctx)
			if ctx.Err() == nil && err == nil {
				err = errEndedEarly
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", t.Name, err)
			}
			r.finish(t.Name, err)
			if ctx.Err() == nil {
				stopAll()
			}
		})
	}
	go func() {
		group.Wait()
		close(r.ended)
	}()
	return r
}

// finish notes that a task has returned.
func (r *runningStage) finish(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = slices.DeleteFunc(r.left, func(n string) bool { return n == name })
	if err != nil {
		r.errs = append(r.errs, err)
	}
}

// stop cancels the tasks, waits for them within the timeout, and returns
// their errors.
func (r *runningStage) stop(log *slog.Logger) error {
	r.cancel()
	began := time.Now()
	timer := time.NewTimer(r.Timeout)
	defer timer.Stop()
	select {
	case <-r.ended:
	case <-timer.C:
	}
	took := time.Since(began).Round(time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.left) > 0 {
		log.Warn("a stage did not stop in time", "stage", r.Name, "took", took, "left", strings.Join(r.left, ", "))
		return errors.Join(append(r.errs, fmt.Errorf("%s: %w: %s after %s", r.Name, errNotStopped, strings.Join(r.left, ", "), r.Timeout))...)
	}
	if len(r.Tasks) > 0 {
		log.Info("stage stopped", "stage", r.Name, "took", took)
	}
	return errors.Join(r.errs...)
}
