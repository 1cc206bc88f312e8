package client

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchAgents is how many agents one watch may name.
const maxWatchAgents = 1000

// WatchMetadata watches the stored metadata of at most 1000 agents. It calls handle
// with the current values of all of them, in one or more parts. The last of these
// has Synced set. Then it calls handle with values that change. When the stream
// breaks, it connects again and begins anew: current values, Synced, changes. A
// slow handle misses intermediate values, never the newest. One that hangs is logged.
//
// It blocks until ctx is cancelled, and returns nil then, at the latest 2 s later, even
// if handle has not returned. It returns an error that trying again cannot cure: a bad
// request, or a credential that is not coderd's.
func (c *Coderd) WatchMetadata(ctx context.Context, agentIDs []uuid.UUID, handle func(*agentstatsv1.WatchMetadataResponse)) error {
	if len(agentIDs) == 0 || len(agentIDs) > maxWatchAgents {
		return fmt.Errorf("watch metadata: %d agents are named, 1 to %d may be", len(agentIDs), maxWatchAgents)
	}
	req := &agentstatsv1.WatchMetadataRequest{AgentIds: idBytes(agentIDs)}
	return watch(ctx, c, "metadata", c.service.WatchMetadata, req, handle)
}

// WatchAgents watches the states of at most 1000 agents; nil: of all agents. It
// calls handle with the current states, in one or more parts. The last of these has
// Synced set. Then it calls handle with states that change and with agents that are
// not registered any more. When the stream breaks, it connects again and begins
// anew: agents that did not come again before Synced are gone. A slow handle misses
// intermediate states, never the newest.
//
// It blocks and returns as WatchMetadata does.
func (c *Coderd) WatchAgents(ctx context.Context, agentIDs []uuid.UUID, handle func(*agentstatsv1.WatchAgentsResponse)) error {
	if len(agentIDs) > maxWatchAgents {
		return fmt.Errorf("watch agents: %d agents are named, at most %d may be", len(agentIDs), maxWatchAgents)
	}
	req := &agentstatsv1.WatchAgentsRequest{AgentIds: idBytes(agentIDs)}
	return watch(ctx, c, "agents", c.service.WatchAgents, req, handle)
}

// watch keeps a stream of responses open until ctx is cancelled.
func watch[Req, Resp any](
	ctx context.Context,
	c *Coderd,
	what string,
	open func(context.Context, *Req, ...grpc.CallOption) (grpc.ServerStreamingClient[Resp], error),
	req *Req,
	handle func(*Resp),
) error {
	handler := c.callback("handler of the watch of " + what)
	return c.streams(what).run(ctx, ctx, func(received func()) error {
		return receiveAll(ctx, open, req, func(resp *Resp) bool {
			received()
			return handler.finish(ctx, func() { handle(resp) })
		})
	})
}

// callback returns a function of a watch.
func (c *Coderd) callback(name string) *callback {
	calls := &callbacks{timeout: c.callbackTimeout, log: c.log}
	return calls.named(name)
}

// streams returns the streams of a watch.
func (c *Coderd) streams(what string) *streams {
	return &streams{what: "watch " + what, backoff: c.backoff, log: c.log, failures: c.watches.Subject(c.log)}
}

// receiveAll serves one stream until it ends, or until handle returns false.
func receiveAll[Req, Resp any](
	ctx context.Context,
	open func(context.Context, *Req, ...grpc.CallOption) (grpc.ServerStreamingClient[Resp], error),
	req *Req,
	handle func(*Resp) bool,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(ctx, req, grpc.MaxCallRecvMsgSize(maxReadBytes))
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if !handle(resp) {
			return errCallbackLeft
		}
	}
}
