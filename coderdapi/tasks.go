package coderdapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Tasks grants tasks to one holder at a time. store.Store is one. It returns those that the
// holder has then, until the duration is over; with 0 the holder gives them back. It also
// returns how many tasks anybody has that begin with a prefix that is not empty. The error
// wraps agent.ErrTooMany if too many are granted.
type Tasks interface {
	AcquireTasks(ctx context.Context, holder agent.ID, names []string, prefix string, d time.Duration) (granted []string, counted int, err error)
}

// Limits of tasks, as the contract states them.
const (
	maxTasks    = 128
	maxTaskName = 128
	minTaskTime = time.Second
	maxTaskTime = time.Hour
)

// AcquireTasks implements agentstatsv1.CoderdServiceServer.
func (s *Service) AcquireTasks(ctx context.Context, req *agentstatsv1.AcquireTasksRequest) (*agentstatsv1.AcquireTasksResponse, error) {
	names := slices.Clone(req.GetNames())
	if n := len(names); n < 1 || n > maxTasks {
		return nil, grpcserver.Invalid("names", "want 1 to %d, got %d", maxTasks, n)
	}
	for i, name := range names {
		if text := contract.TextProblem(name, 1, maxTaskName); text != "" {
			return nil, grpcserver.Invalid(fmt.Sprintf("names[%d]", i), "%s", text)
		}
	}
	if text := contract.TextProblem(req.GetCountedPrefix(), 0, maxTaskName); text != "" {
		return nil, grpcserver.Invalid("counted_prefix", "%s", text)
	}
	// In one order, so that two callers do not wait for each other.
	slices.Sort(names)
	names = slices.Compact(names)
	holder, problem := idOf("holder_id", req.GetHolderId())
	if problem != nil {
		return nil, grpcserver.Invalid(problem.field, "%s", problem.text)
	}
	d, problem := durationOf("duration", req.GetDuration())
	if problem == nil && d != 0 && (d < minTaskTime || d > maxTaskTime) {
		problem = problemf("duration", "want 0 s, or %v to %v, got %v", minTaskTime, maxTaskTime, d)
	}
	if problem != nil {
		return nil, grpcserver.Invalid(problem.field, "%s", problem.text)
	}
	granted, counted, err := s.Tasks.AcquireTasks(ctx, holder, names, req.GetCountedPrefix(), d)
	switch {
	case errors.Is(err, agent.ErrTooMany):
		return nil, grpcserver.Exhausted(time.Minute, "tasks: too many are granted")
	case err != nil:
		return nil, s.failure(ctx, "acquire tasks", err)
	}
	return &agentstatsv1.AcquireTasksResponse{Granted: granted, Counted: uint32(counted)}, nil //nolint:gosec // There are few.
}
