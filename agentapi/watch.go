package agentapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
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
	if !s.streams.enter() {
		return errDraining
	}
	defer s.streams.leave()
	ids, err := readIDs(req.GetAgentIds())
	if err != nil {
		return err
	}
	if !s.watches.take() {
		s.metrics.refused.WithLabelValues("watch").Inc()
		return exhausted(time.Second, fmt.Sprintf("want at most %d watches at once", s.opts.MaxWatches))
	}
	defer s.watches.free()
	s.metrics.watches.Inc()
	defer s.metrics.watches.Dec()

	w := newWatch(ids)
	cancel, err := s.News.SubscribeMetadata(w.changed)
	if err != nil {
		return s.failure(stream.Context(), "subscribe to metadata", err)
	}
	defer cancel()
	return s.watch(stream, w)
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
		case <-w.wake:
		case <-retry.C:
		case <-reread.C:
			w.changed(nil)
		case <-s.streams.draining:
			return errDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		dirty := w.take()
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
			w.putBack(dirty)
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

// watch is what a watcher waits for, and what it was told.
type watch struct {
	ids     []agent.ID
	watched map[agent.ID]struct{}
	// wake has an element when something is dirty.
	wake chan struct{}
	// sent are the values that were sent, by agent and key. The handler's own.
	sent map[agent.ID]map[string]version

	mu sync.Mutex
	// dirty agents are to be read again; never more than are watched. Guarded
	// by mu.
	dirty map[agent.ID]struct{}
}

// version tells one value of a key from another.
type version struct {
	order agent.Order
	at    time.Time
}

func newWatch(ids []agent.ID) *watch {
	w := &watch{
		ids:     ids,
		watched: make(map[agent.ID]struct{}, len(ids)),
		wake:    make(chan struct{}, 1),
		sent:    make(map[agent.ID]map[string]version, len(ids)),
		dirty:   make(map[agent.ID]struct{}),
	}
	for _, id := range ids {
		w.watched[id] = struct{}{}
	}
	return w
}

// changed marks those of the agents that are watched; nil: all of them. It does
// not block.
func (w *watch) changed(ids []agent.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ids == nil {
		ids = w.ids
	}
	for _, id := range ids {
		if _, watched := w.watched[id]; watched {
			w.dirty[id] = struct{}{}
		}
	}
	if len(w.dirty) == 0 {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns the agents to be read.
func (w *watch) take() []agent.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := slices.Collect(maps.Keys(w.dirty))
	clear(w.dirty)
	return ids
}

// putBack has the agents read again, at the next read for whatever reason.
func (w *watch) putBack(ids []agent.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.dirty[id] = struct{}{}
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
