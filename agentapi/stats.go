package agentapi

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchName bounds the name of a watch, in bytes.
const maxWatchName = 64

var errWatchTaken = status.Error(codes.Aborted, "superseded by a newer watch of the name")

// WatchStats implements agentstatsv1.CoderdServiceServer.
func (s *coderdService) WatchStats(stream grpc.BidiStreamingServer[agentstatsv1.WatchStatsRequest, agentstatsv1.WatchStatsResponse]) error {
	end, err := s.beginWatch(watchStats)
	if err != nil {
		return err
	}
	defer end()
	ctx := stream.Context()
	requests := receive(ctx, &s.receivers, stream.Recv)
	first, err := awaitFirst(ctx, s.Server, requests, "request")
	if err != nil {
		return err
	}
	ids, err := watchIDs(first.GetAgentIds())
	if err != nil {
		return err
	}
	name := first.GetName()
	if problem := textProblem(name, 0, maxWatchName); problem != "" {
		return invalid("name", "%s", problem)
	}
	fresh := func() *statsWatch { return newStatsWatch(ids, s.Fleet.MaxAgents(), s.metrics) }
	turn, err := s.statsNames.enter(name, fresh, processed{first.GetEpoch(), first.GetAckedSequence()})
	if err != nil {
		return err
	}
	defer s.statsNames.leave(name, turn)
	return s.tellStats(ctx, stream, requests, turn, turn.watch.follow(ids))
}

// tellStats sends what is gathered, each response once the one before is acked,
// until the stream or the service ends.
func (s *coderdService) tellStats(
	ctx context.Context,
	stream grpc.BidiStreamingServer[agentstatsv1.WatchStatsRequest, agentstatsv1.WatchStatsResponse],
	requests <-chan received[*agentstatsv1.WatchStatsRequest],
	turn *statsTurn,
	wake <-chan struct{},
) error {
	var sent int64 // sequence of the last response on this stream
	// gathered fires when reports have gathered for watchPause; nil: they need
	// not.
	var gathered <-chan time.Time
	settled := turn.settled
	for {
		if settled == nil {
			if resp := turn.watch.next(gathered == nil); resp != nil && resp.GetSequence() != sent {
				if err := stream.Send(resp); err != nil {
					return err
				}
				sent = resp.GetSequence()
			}
		}
		select {
		case r := <-requests:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			news, err := turn.watch.ack(r.message.GetAckedSequence())
			if err != nil {
				return err
			}
			if news {
				gathered = time.After(watchPause)
			}
		case <-wake:
		case <-gathered:
			gathered = nil
		case <-settled:
			settled = nil
		case <-turn.taken:
			return errWatchTaken
		case <-s.streams.draining:
			return errDraining
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchIDs converts the ids of agents that are watched; none: all.
func watchIDs(list [][]byte) ([]agent.ID, error) {
	if len(list) == 0 {
		return nil, nil
	}
	return readIDs(list)
}
