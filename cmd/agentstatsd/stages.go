package main

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
)

// task blocks until ctx ends and then stops in bounded time.
type task func(ctx context.Context) error

var errEndedEarly = errors.New("ended before it was told to")

// runStages runs all tasks of all stages at once. When ctx ends, or a task does
// before it was told to, the stages stop one after another: each is told to
// stop only when all tasks of the one before it have returned. So what produces
// stands before what consumes. It returns what the tasks returned, joined.
func runStages(ctx context.Context, stages ...[]task) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var groups []*errgroup.Group
	var stopGroup []context.CancelFunc
	for _, tasks := range stages {
		groupCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		group := new(errgroup.Group)
		for _, run := range tasks {
			group.Go(func() error {
				err := run(groupCtx)
				if groupCtx.Err() == nil {
					stop()
					if err == nil {
						err = errEndedEarly
					}
				}
				return err
			})
		}
		groups = append(groups, group)
		stopGroup = append(stopGroup, cancel)
	}
	<-ctx.Done()
	var errs []error
	for i, group := range groups {
		stopGroup[i]()
		errs = append(errs, group.Wait())
	}
	return errors.Join(errs...)
}
