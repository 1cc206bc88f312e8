package coderdapi

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchName bounds the name of a subscription, in bytes.
const maxWatchName = 64

var (
	errWatchTaken = status.Error(codes.Aborted, "superseded by a newer watch of the name")
	errWatchFree  = status.Error(codes.Unavailable, "the watcher that had the name is gone; connect again")
)

// statsStream is the stream of WatchStats.
type statsStream = grpc.BidiStreamingServer[agentstatsv1.WatchStatsRequest, agentstatsv1.WatchStatsResponse]

// WatchStats implements agentstatsv1.CoderdServiceServer.
func (s *Service) WatchStats(stream statsStream) error {
	stop, err := s.startWatch(stream.Context(), watchStats)
	if err != nil {
		return err
	}
	defer stop()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	requests := receive(ctx, s.server, stream.Recv)
	first, err := awaitFirst(ctx, s.server, requests, "request")
	if err != nil {
		return err
	}
	if problem := contract.TextProblem(first.GetName(), 1, maxWatchName); problem != "" {
		return grpcserver.Invalid("name", "%s", problem)
	}
	if n := first.GetNumber(); n < 0 {
		return grpcserver.Invalid("number", "want at least 0, got %d", n)
	}
	acks := make(chan int64)
	var acking sync.WaitGroup
	acking.Go(func() {
		if err := s.forwardAcks(ctx, requests, acks); err != nil {
			cancel(err)
		}
	})
	err = s.Reports.Serve(ctx, agent.ReportWatch{
		Name:     first.GetName(),
		Position: agent.Position{Incarnation: int64(first.GetIncarnation()), Number: first.GetNumber(), Nonce: int64(first.GetNonce())},
		StandBy:  first.GetStandBy(),
		Room:     s.watchBytes.batchRoom,
	}, acks, func(m agent.ReportMessage) error { return stream.Send(statsResponse(m)) })
	cause := context.Cause(ctx)
	cancel(nil)
	acking.Wait()
	return s.watchEnded(stream.Context(), err, cause)
}

// forwardAcks forwards the watcher's acks, and closes acks when the watcher half-closes
// the stream. Its error ends the stream.
func (s *Service) forwardAcks(ctx context.Context, requests <-chan received[*agentstatsv1.WatchStatsRequest], acks chan<- int64) error {
	for {
		var r received[*agentstatsv1.WatchStatsRequest]
		select {
		case r = <-requests:
		case <-s.server.Draining():
			return grpcserver.ErrDraining
		case <-ctx.Done():
			return nil
		}
		if errors.Is(r.err, io.EOF) {
			close(acks)
			return nil
		}
		if r.err != nil {
			return r.err
		}
		select {
		case acks <- r.message.GetNumber():
		case <-s.server.Draining():
			return grpcserver.ErrDraining
		case <-ctx.Done():
			return nil
		}
	}
}

// watchEnded returns the status of a watch that ended with err. cause is why its
// context was cancelled; nil: it was not.
func (s *Service) watchEnded(ctx context.Context, err, cause error) error {
	var ack *agent.AckError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, agent.ErrSuperseded):
		return errWatchTaken
	case errors.Is(err, agent.ErrNameFree):
		return errWatchFree
	case errors.Is(err, agent.ErrTooMany):
		return grpcserver.Exhausted(watchRetry, err.Error())
	case errors.As(err, &ack):
		return grpcserver.Invalid("number", "%v", ack)
	case cause != nil:
		return cause
	}
	if _, ok := status.FromError(err); ok {
		return err // of the stream
	}
	return s.failure(ctx, "watch stats", err)
}

// statsResponse is a message to a watcher.
func statsResponse(m agent.ReportMessage) *agentstatsv1.WatchStatsResponse {
	resp := &agentstatsv1.WatchStatsResponse{
		Agents:      make([]*agentstatsv1.AgentStats, len(m.Sums)),
		Incarnation: uint64(m.Position.Incarnation),
		Number:      m.Position.Number,
		Nonce:       uint64(m.Position.Nonce),
		Since:       timestamppb.New(m.Since),
	}
	for i := range m.Sums {
		resp.Agents[i] = contract.AgentStats(&m.Sums[i])
	}
	return resp
}
