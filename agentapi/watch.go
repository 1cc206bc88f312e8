package agentapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// watchRead agents are read at once: with 15 keys of 100 bytes that is 150 KB.
const watchRead = 100

// watchPart is the size at which a part of the answer is sent.
const watchPart = 256 << 10

// watchRetry is the time to the next read after one that failed.
const watchRetry = time.Second

// WatchMetadata implements agentstatsv1.CoderdServiceServer.
func (s *coderdService) WatchMetadata(req *agentstatsv1.WatchMetadataRequest, stream grpc.ServerStreamingServer[agentstatsv1.WatchMetadataResponse]) error {
	ids, err := readIDs(req.GetAgentIds())
	if err != nil {
		return err
	}
	end, err := s.beginWatch(watchMetadata)
	if err != nil {
		return err
	}
	defer end()
	w := newWatch(ids)
	cancel, err := s.News.SubscribeMetadata(w.dirty.changed)
	if err != nil {
		return s.failure(stream.Context(), "subscribe to metadata", err)
	}
	defer cancel()
	return s.watch(stream, w)
}

// beginWatch takes a place among the watches, which end gives back.
func (s *coderdService) beginWatch(kind string) (end func(), err error) {
	if !s.streams.enter() {
		return nil, errDraining
	}
	if !s.watches.take() {
		s.streams.leave()
		s.metrics.refused.WithLabelValues("watch").Inc()
		return nil, exhausted(time.Second, fmt.Sprintf("want at most %d watches at once", s.opts.MaxWatches))
	}
	s.metrics.watches.WithLabelValues(kind).Inc()
	return func() {
		s.metrics.watches.WithLabelValues(kind).Dec()
		s.watches.free()
		s.streams.leave()
	}, nil
}

// watch sends what is stored, then what changes, until the stream or the service
// ends.
func (s *coderdService) watch(stream grpc.ServerStreamingServer[agentstatsv1.WatchMetadataResponse], w *watch) error {
	ctx := stream.Context()
	// The subscription stands: what changes from here on is dirty.
	if err := s.sendMetadata(ctx, stream, w, w.ids); err != nil {
		return err
	}
	if err := stream.Send(&agentstatsv1.WatchMetadataResponse{Synced: true}); err != nil {
		return err
	}
	reread := time.NewTicker(s.opts.WatchInterval)
	defer reread.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	<-retry.C
	for {
		select {
		case <-w.dirty.wake:
		case <-retry.C:
		case <-reread.C:
			w.dirty.changed(nil)
		case <-s.streams.draining:
			return errDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		dirty, all := w.dirty.take()
		if all {
			dirty = w.ids
		}
		if len(dirty) == 0 {
			continue
		}
		err := s.sendMetadata(ctx, stream, w, dirty)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errDown):
			// The database is down for a while: the watcher waits.
			w.dirty.putBack(dirty)
			retry.Reset(watchRetry)
		default:
			return err
		}
	}
}

// sendMetadata reads the metadata of agents and sends what is new to the
// watcher. The error is errDown if it cannot be read.
func (s *coderdService) sendMetadata(ctx context.Context, stream grpc.ServerStreamingServer[agentstatsv1.WatchMetadataResponse], w *watch, ids []agent.ID) error {
	for part := range slices.Chunk(ids, watchRead) {
		rows, err := s.Reader.Metadata(ctx, part)
		if err != nil {
			s.metrics.watchErrors.Inc()
			return errDown
		}
		for _, resp := range w.news(part, rows) {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
	}
	return nil
}

// watch is what a watcher of metadata waits for, and what it was told.
type watch struct {
	ids   []agent.ID
	dirty *dirtySet
	// sent are the values that were sent, by agent and key. The handler's own.
	sent map[agent.ID]map[string]version
}

// version tells one value of a key from another.
type version struct {
	order agent.Order
	at    time.Time
}

func newWatch(ids []agent.ID) *watch {
	return &watch{
		ids:   ids,
		dirty: newDirtySet(ids, len(ids)),
		sent:  make(map[agent.ID]map[string]version, len(ids)),
	}
}

// news returns what of the rows, which are all that is stored of the agents, is
// new to the watcher, in parts of about watchPart bytes. Of an agent without
// rows it is forgotten what was sent: if it comes back it is news.
func (w *watch) news(ids []agent.ID, rows []agent.Metadata) []*agentstatsv1.WatchMetadataResponse {
	var parts []*agentstatsv1.WatchMetadataResponse
	size := 0
	stored := make(map[agent.ID]struct{}, len(ids))
	for i := range rows {
		row := &rows[i]
		sent := w.sent[row.Agent]
		if _, seen := stored[row.Agent]; !seen {
			stored[row.Agent] = struct{}{}
			if sent == nil {
				sent = make(map[string]version)
				w.sent[row.Agent] = sent
			}
		}
		now := version{row.Order, row.CollectedAt}
		if before, told := sent[row.Key]; told && before.order == now.order && before.at.Equal(now.at) {
			continue
		}
		sent[row.Key] = now
		if len(parts) == 0 || size >= watchPart {
			parts = append(parts, &agentstatsv1.WatchMetadataResponse{})
			size = 0
		}
		value := metadataValue(row)
		size += proto.Size(value)
		appendValue(parts[len(parts)-1], row.Agent, value)
	}
	for _, id := range ids {
		if _, seen := stored[id]; !seen {
			delete(w.sent, id)
		}
	}
	return parts
}

// appendValue adds a value to the part; those of one agent come one after
// another.
func appendValue(part *agentstatsv1.WatchMetadataResponse, id agent.ID, value *agentstatsv1.MetadataValue) {
	n := len(part.Agents)
	if n == 0 || agent.ID(part.Agents[n-1].AgentId) != id {
		part.Agents = append(part.Agents, &agentstatsv1.AgentMetadata{AgentId: id[:]})
		n++
	}
	part.Agents[n-1].Values = append(part.Agents[n-1].Values, value)
}

// watchPause is the time between two messages to a watcher of agents, in which
// changes gather.
const watchPause = 250 * time.Millisecond

// pause lets changes gather for a watcher.
func (s *coderdService) pause(ctx context.Context) error {
	timer := time.NewTimer(watchPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.streams.draining:
		return errDraining
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchIDs converts the ids of agents that are watched; none: all.
func watchIDs(list [][]byte) ([]agent.ID, error) {
	if len(list) == 0 {
		return nil, nil
	}
	return readIDs(list)
}
