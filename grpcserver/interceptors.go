package grpcserver

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errInternal is all that a peer learns of an error that is ours.
var errInternal = status.Error(codes.Internal, "internal error")

// Recovered converts a panic of a handler, or of a part of one, into an error for its
// caller.
func (s *Server) Recovered(p any) error {
	s.metrics.panics.Inc()
	s.panics.Log(context.Background(), s.log, slog.LevelError, "panics", 1, "a gRPC handler panicked", "panic", p, "stack", string(debug.Stack()))
	return errInternal
}

func (s *Server) recoverStream() grpc.StreamServerInterceptor {
	return recovery.StreamServerInterceptor(recovery.WithRecoveryHandler(s.Recovered))
}

// guard lets only errors out that were made for the peer.
func (s *Server) guard(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	s.faults.Log(ctx, s.log, slog.LevelError, "calls", 1, "a gRPC handler failed", "method", method, "error", err)
	return errInternal
}

func (s *Server) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.guard(stream.Context(), info.FullMethod, handler(srv, stream))
}

// tooLarge returns the status that refuses a message of size bytes; flag sets the
// limit, empty: none does.
func tooLarge(field string, size, limit int, flag string) error {
	if flag != "" {
		flag = " (" + flag + ")"
	}
	return status.Errorf(codes.ResourceExhausted, "%s: want at most %d bytes%s, got %d", field, limit, flag, size)
}

// serviceOf returns the service of a full method "/service/method".
func serviceOf(fullMethod string) string {
	service, _, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	return service
}
