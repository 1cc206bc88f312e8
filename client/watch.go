package client

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchAgents is how many agents one watch may have.
const maxWatchAgents = 1000

// WatchMetadata watches the stored metadata of at most 1000 agents. It calls
// news with the current values of all of them, in one or more parts of which
// the last has Synced set, then with those that change. When the stream breaks,
// it connects again and begins anew: current values, Synced, changes. A slow
// news misses intermediate values, never the newest.
//
// It blocks until ctx is cancelled, and returns nil then. It returns an error
// that trying again cannot cure: a bad request, or a credential that is not
// coderd's.
func (c *Coderd) WatchMetadata(ctx context.Context, agentIDs []uuid.UUID, news func(*agentstatsv1.WatchMetadataResponse)) error {
	if len(agentIDs) == 0 || len(agentIDs) > maxWatchAgents {
		return fmt.Errorf("watch metadata: %d agents are named, 1 to %d may be", len(agentIDs), maxWatchAgents)
	}
	req := &agentstatsv1.WatchMetadataRequest{AgentIds: idBytes(agentIDs)}
	for attempt := 0; ; attempt++ {
		synced, err := c.watch(ctx, req, news)
		if ctx.Err() != nil {
			return nil
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Unimplemented:
			return fmt.Errorf("watch metadata: %w", err)
		}
		if synced {
			attempt = 0
		}
		wait := c.backoff.wait(attempt) + retryDelay(err)
		c.log.WarnContext(ctx, "watch of metadata broke", "error", err, "retry_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// watch serves one stream until it ends, and tells whether it got so far that
// the current values were complete.
func (c *Coderd) watch(ctx context.Context, req *agentstatsv1.WatchMetadataRequest, news func(*agentstatsv1.WatchMetadataResponse)) (synced bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.service.WatchMetadata(ctx, req, grpc.MaxCallRecvMsgSize(maxReadBytes))
	if err != nil {
		return false, err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return synced, err
		}
		synced = synced || resp.GetSynced()
		news(resp)
	}
}
