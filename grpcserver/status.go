package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agent"
)

// Statuses of what is no fault of the caller.
var (
	ErrDraining     = status.Error(codes.Unavailable, "the service is stopping; connect again elsewhere or later")
	ErrDatabaseDown = status.Error(codes.Unavailable, "the database cannot be used now; try again")
	ErrNotLoaded    = status.Error(codes.Unavailable, "the registrations are not available now; try again")
)

// Invalid returns INVALID_ARGUMENT that names the field.
func Invalid(field, format string, args ...any) error {
	problem := fmt.Sprintf(format, args...)
	return withDetails(codes.InvalidArgument, field+": "+problem, &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: problem}},
	})
}

// Exhausted returns RESOURCE_EXHAUSTED with the delay before the next attempt.
func Exhausted(retry time.Duration, text string) error {
	return withDetails(codes.ResourceExhausted, text, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
}

func withDetails(code codes.Code, text string, details protoadapt.MessageV1) error {
	st := status.New(code, text)
	detailed, err := st.WithDetails(details)
	if err != nil {
		return st.Err() // without the details it says the same
	}
	return detailed.Err()
}

// Failure returns the status of an error of a component, which the peer cannot do
// anything about. The log has one a minute; its text does not reach the peer.
func (s *Server) Failure(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	s.failures.Log(ctx, s.log, slog.LevelError, "calls", 1, "a call failed", "doing", doing, "error", err)
	if errors.Is(err, agent.ErrRejected) {
		return status.Error(codes.InvalidArgument, "the database refuses the data")
	}
	return ErrDatabaseDown
}
