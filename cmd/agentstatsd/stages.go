package main

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

// task blocks until ctx ends and then stops in bounded time.
type task struct {
	name string
	run  func(ctx context.Context) error
}

// stage is what stops together.
type stage struct {
	name  string
	tasks []task
	// timeout bounds the wait for the tasks once they are stopped.
	timeout time.Duration
}

var (
	errEndedEarly = errors.New("ended before it was stopped")
	errNotStopped = errors.New("did not stop in time")
)

// runStages runs all tasks of all stages at once. When ctx or a task ends, the stages
// stop one after another. Each is stopped when all tasks of the one before it have
// returned, or its timeout has passed. So what produces stands before what consumes,
// and a stop takes at most the sum of the timeouts. It returns what the tasks
// returned, joined, and errNotStopped for a stage that it left behind.
func runStages(ctx context.Context, log *slog.Logger, stages ...stage) error {
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
	stage
	cancel context.CancelFunc
	ended  chan struct{} // closed when all tasks have returned

	mu   sync.Mutex
	left []string // names of the tasks that run
	errs []error
}

// start runs the tasks until ctx or the stage's own context ends. A task that
// ends earlier calls stopAll.
func (s stage) start(ctx context.Context, stopAll func()) *runningStage {
	ctx, cancel := context.WithCancel(ctx)
	r := &runningStage{stage: s, cancel: cancel, ended: make(chan struct{})}
	var group sync.WaitGroup
	for _, t := range s.tasks {
		r.left = append(r.left, t.name)
		group.Go(func() {
			err := t.run(ctx)
			if ctx.Err() == nil && err == nil {
				err = errEndedEarly
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", t.name, err)
			}
			r.finish(t.name, err)
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
	timer := time.NewTimer(r.timeout)
	defer timer.Stop()
	select {
	case <-r.ended:
	case <-timer.C:
	}
	took := time.Since(began).Round(time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.left) > 0 {
		log.Warn("a stage did not stop in time", "stage", r.name, "took", took, "left", strings.Join(r.left, ", "))
		return errors.Join(append(r.errs, fmt.Errorf("%s: %w: %s after %s", r.name, errNotStopped, strings.Join(r.left, ", "), r.timeout))...)
	}
	if len(r.tasks) > 0 {
		log.Info("stage stopped", "stage", r.name, "took", took)
	}
	return errors.Join(r.errs...)
}
