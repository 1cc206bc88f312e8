package agentapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
)

var (
	errDraining  = status.Error(codes.Unavailable, "the service is stopping; connect again elsewhere or later")
	errDown      = status.Error(codes.Unavailable, "the database cannot be used now; try again")
	errNotLoaded = status.Error(codes.Unavailable, "the registrations are not available now; try again")
)

// invalid returns INVALID_ARGUMENT that names the field.
func invalid(field, format string, args ...any) error {
	problem := fmt.Sprintf(format, args...)
	return withDetails(codes.InvalidArgument, field+": "+problem, &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: problem}},
	})
}

// exhausted returns RESOURCE_EXHAUSTED with the time to stay away.
func exhausted(retry time.Duration, text string) error {
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

// failure returns the status that tells the peer of an error of the components.
// What the peer cannot do anything about is logged, and told in general terms.
func (s *Server) failure(ctx context.Context, doing string, err error) error {
	var field *fleet.FieldError
	switch {
	case errors.As(err, &field):
		return invalid(field.Field, "%s", field.Problem)
	case errors.Is(err, fleet.ErrTooMany), errors.Is(err, fleet.ErrTooLarge):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, fleet.ErrNeedsForce):
		return status.Error(codes.FailedPrecondition, err.Error()+"; force: want true to do so")
	case errors.Is(err, fleet.ErrUnavailable):
		return errNotLoaded
	case errors.Is(err, fleet.ErrUnknownAgent):
		// An agent of its own got here by its token: that is gone now.
		if c := callerFrom(ctx); c.token == "" {
			return status.Error(codes.NotFound, agentIDKey+": no such agent is registered")
		}
		return status.Error(codes.Unauthenticated, "unknown token")
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	}
	s.log.Error("a call failed", "doing", doing, "error", err)
	if errors.Is(err, agent.ErrRejected) {
		return status.Error(codes.InvalidArgument, "the database refuses the data")
	}
	return errDown
}

// ended returns the status of a stream whose session ended by the fleet.
func ended(end fleet.End) error {
	switch end {
	case fleet.EndTakeover:
		return status.Error(codes.Aborted, "superseded by a newer session")
	case fleet.EndDeregistered:
		return status.Error(codes.Unauthenticated, "the agent was deregistered")
	case fleet.EndSuperseded:
		return status.Error(codes.Unauthenticated, "the agent was superseded by that of a newer build")
	case fleet.EndRevoked:
		return status.Error(codes.Unauthenticated, "the token was revoked")
	case fleet.EndAged:
		return status.Error(codes.Unavailable, "the session is too old; connect again")
	case fleet.EndOutdated:
		return status.Error(codes.Unavailable, "what another session said was stored in its place; connect again")
	}
	return errDraining
}
