package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// requestError is what is wrong with a request.
type requestError struct{ text string }

// Error implements error.
func (e requestError) Error() string { return e.text }

func invalid(format string, args ...any) error { return requestError{fmt.Sprintf(format, args...)} }

// statuses are those of HTTP for codes of gRPC. Others are 500.
var statuses = map[codes.Code]int{
	codes.InvalidArgument:    http.StatusBadRequest,
	codes.OutOfRange:         http.StatusBadRequest,
	codes.NotFound:           http.StatusNotFound,
	codes.FailedPrecondition: http.StatusConflict,
	codes.Aborted:            http.StatusConflict,
	codes.PermissionDenied:   http.StatusForbidden,
	codes.ResourceExhausted:  http.StatusTooManyRequests,
	codes.Unimplemented:      http.StatusNotImplemented,
	codes.Unavailable:        http.StatusServiceUnavailable,
	codes.Canceled:           http.StatusServiceUnavailable,
	codes.DeadlineExceeded:   http.StatusGatewayTimeout,
}

// statusOf returns the status of gRPC for an error, also of a context that ended.
func statusOf(err error) *status.Status {
	s, ok := status.FromError(err)
	switch {
	case ok:
		return s
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, "the answer took too long")
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "the request was given up")
	}
	return s
}

// explain returns the status of HTTP for an error, and the text for who asked.
func explain(err error) (code int, text string) {
	var wrong requestError
	if errors.As(err, &wrong) {
		return http.StatusBadRequest, wrong.text
	}
	s := statusOf(err)
	code, ok := statuses[s.Code()]
	if !ok {
		return http.StatusInternalServerError, "the service could not answer: its log says why"
	}
	if s.Code() == codes.Unimplemented {
		return code, "this program does not answer that"
	}
	return code, s.Message()
}
