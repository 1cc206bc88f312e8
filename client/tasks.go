package client

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// AcquireTasks has the service grant tasks to the holder, a random id of this process, for
// so long, at most an hour: those that nobody else has. It returns them. A task is
// renewed by acquiring it again. With a duration of 0 the holder gives them back.
func (c *Coderd) AcquireTasks(ctx context.Context, holder uuid.UUID, d time.Duration, names ...string) ([]string, error) {
	granted, _, err := c.AcquireCountedTasks(ctx, holder, d, "", names...)
	return granted, err
}

// AcquireCountedTasks is AcquireTasks. It also returns how many tasks anybody has then whose
// names begin with a prefix, unless that is empty or the duration is 0. A service that
// does not count returns 0.
func (c *Coderd) AcquireCountedTasks(ctx context.Context, holder uuid.UUID, d time.Duration, prefix string, names ...string) (granted []string, counted int, err error) {
	resp, err := c.service.AcquireTasks(ctx, &agentstatsv1.AcquireTasksRequest{
		Names: names, HolderId: holder[:], Duration: durationpb.New(d), CountedPrefix: prefix,
	})
	if err != nil {
		return nil, 0, fmt.Errorf("acquire tasks: %w", err)
	}
	return resp.GetGranted(), int(resp.GetCounted()), nil
}
