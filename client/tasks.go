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
	resp, err := c.service.AcquireTasks(ctx, &agentstatsv1.AcquireTasksRequest{Names: names, HolderId: holder[:], Duration: durationpb.New(d)})
	if err != nil {
		return nil, fmt.Errorf("acquire tasks: %w", err)
	}
	return resp.GetGranted(), nil
}
