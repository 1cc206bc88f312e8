package coderdapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// watchRead is how many agents are read at once, fewer if they have much. With 15 keys
// of 100 bytes they have 50 KB. The store reads so many by one statement.
const watchRead = 32

// watchPart is the size in bytes at which a part of the answer is sent. For a watcher
// that does not read, gRPC keeps one part beside a buffer of 64 KB. One more is encoded
// meanwhile.
const watchPart = 64 << 10

// watchRetry is the time between a failed read and the next one.
const watchRetry = time.Second

// WatchMetadata implements agentstatsv1.CoderdServiceServer.
func (s *Service) WatchMetadata(req *agentstatsv1.WatchMetadataRequest, stream grpc.ServerStreamingServer[agentstatsv1.WatchMetadataResponse]) error {
	ids, err := readIDs(req.GetAgentIds())
	if err != nil {
		return err
	}
	stop, err := s.startWatch(stream.Context(), watchMetadata)
	if err != nil {
		return err
	}
	defer stop()
	w := newWatch(ids, s.opts.Load().MaxWatchBytes/2, s.watchBytes.sent)
	defer w.close()
	if err := w.grow(0); err != nil {
		return err
	}
	cancel, err := s.Subscriber.SubscribeMetadata(w.dirty.markDirty)
	if err != nil {
		return s.failure(stream.Context(), "subscribe to metadata", err)
	}
	defer cancel()
	return s.watch(stream, w)
}

// startWatch acquires a slot of the watches, which stop releases. Those who may only read
// have a share of them: coderd's go on, whatever a tool opens.
func (s *Service) startWatch(ctx context.Context, kind string) (stop func(), err error) {
	if err := s.server.BeginStream(); err != nil {
		return nil, err
	}
	release := func() {}
	if grpcserver.CallerFrom(ctx).IsOperator {
		if !s.operatorsWatches.TryAcquire() {
			s.server.EndStream()
			s.metrics.refused.WithLabelValues(refusedWatch).Inc()
			return nil, grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d watches at once of those who may only read, a share of %s", s.operatorsWatches.Limit(), grpcserver.FlagWatches))
		}
		release = s.operatorsWatches.Release
	}
	if !s.watches.TryAcquire() {
		release()
		s.server.EndStream()
		s.metrics.refused.WithLabelValues(refusedWatch).Inc()
		return nil, grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d watches at once (%s)", s.opts.Load().MaxWatches, grpcserver.FlagWatches))
	}
	s.metrics.watches.WithLabelValues(kind).Inc()
	return func() {
		s.metrics.watches.WithLabelValues(kind).Dec()
		s.watches.Release()
		release()
		s.server.EndStream()
	}, nil
}

// watch sends the stored values, then changes, until the stream or the service ends.
func (s *Service) watch(stream grpc.ServerStreamingServer[agentstatsv1.WatchMetadataResponse], w *watch) error {
	ctx := stream.Context()
	// The subscription exists: what changes from here on is dirty.
	if err := s.sendMetadata(ctx, stream, w, w.ids); err != nil {
		return err
	}
	if err := stream.Send(&agentstatsv1.WatchMetadataResponse{Synced: true}); err != nil {
		return err
	}
	reread := time.NewTicker(s.opts.Load().WatchInterval)
	defer reread.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	<-retry.C
	for {
		select {
		case <-w.dirty.wake:
		case <-retry.C:
		case <-reread.C:
			w.dirty.markDirty(nil)
		case <-s.server.Draining():
			return grpcserver.ErrDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		dirty, all := w.dirty.takeDirty()
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
		case errors.Is(err, grpcserver.ErrDatabaseDown):
			// The database is unavailable: the watcher waits.
			w.dirty.putBack(dirty)
			retry.Reset(watchRetry)
		default:
			return err
		}
	}
}

// sendMetadata reads the metadata of agents and sends the values that have changed.
// The error is grpcserver.ErrDatabaseDown if they cannot be read.
func (s *Service) sendMetadata(ctx context.Context, stream grpc.ServerStreamingServer[agentstatsv1.WatchMetadataResponse], w *watch, ids []agent.ID) error {
	for size := watchRead; len(ids) > 0; {
		some := ids[:min(size, len(ids))]
		read, cut, err := s.sendSome(ctx, stream, w, some)
		if err != nil {
			return err
		}
		if cut {
			size = max(1, read)
		}
		ids = ids[read:]
	}
	return nil
}

// sendSome reads the metadata of as many of the agents as fit a read, at least one, and
// sends the values that have changed. It returns the number of these agents. cut is
// true if not all did fit.
func (s *Service) sendSome(ctx context.Context, stream grpc.ServerStreamingServer[agentstatsv1.WatchMetadataResponse], w *watch, ids []agent.ID) (read int, cut bool, err error) {
	// All reads before this one in the queue may be slow.
	reserved, err := s.watchBytes.acquire(ctx, s.opts.Load().MaxWatchBytes/2, 2*s.server.Options().SendTimeout)
	if err != nil {
		return 0, false, err
	}
	defer reserved.release()
	slices.SortFunc(ids, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	rows, left, err := s.Reader.MetadataWithin(ctx, ids, s.opts.Load().MaxWatchBytes/4)
	if err != nil {
		s.metrics.watchErrors.Inc()
		return 0, false, grpcserver.ErrDatabaseDown
	}
	ids = ids[:len(ids)-len(left)]
	reserved.shrink(metadataBytes(rows) + 2*watchPart)
	began := time.Now()
	err = w.sendChanged(ids, rows, func(part *agentstatsv1.WatchMetadataResponse) error {
		if time.Since(began) > s.server.Options().SendTimeout {
			return s.server.SlowReader() // a reader that takes a little from time to time
		}
		return stream.Send(part)
	})
	return len(ids), len(left) > 0, err
}

// watch is the state of a watch of metadata.
type watch struct {
	ids   []agent.ID
	dirty *dirtySet
	// sent are the sorted hashes of the values that were sent, with their keys. Only
	// the handler uses sent and the fields below.
	sent   map[agent.ID][]uint64
	values int // in sent
	seed   maphash.Seed
	// reserved bytes of the budget, at most limit.
	reserved, limit int
	budget          *byteBudget
}

func newWatch(ids []agent.ID, limit int, budget *byteBudget) *watch {
	return &watch{
		ids:    ids,
		dirty:  newDirtySet(ids, len(ids)),
		sent:   make(map[agent.ID][]uint64, len(ids)),
		seed:   maphash.MakeSeed(),
		limit:  limit,
		budget: budget,
	}
}

// hash returns a value's hash, which differs between values of a key and between
// keys.
func (w *watch) hash(m *agent.Metadata) uint64 {
	return maphash.Comparable(w.seed, struct {
		key   string
		order agent.Order
		at    int64
		zero  bool
	}{m.Key, m.Order, m.CollectedAt.UnixNano(), m.CollectedAt.IsZero()})
}

// sendChanged sends the rows that have changed since they were sent, in parts of about
// watchPart bytes. rows are all that is stored of the agents. The hashes of an agent
// without rows are removed. Its next values count as changed.
func (w *watch) sendChanged(ids []agent.ID, rows []agent.Metadata, send func(*agentstatsv1.WatchMetadataResponse) error) error {
	part, size := &agentstatsv1.WatchMetadataResponse{}, 0
	for _, id := range ids {
		n := 0
		for n < len(rows) && rows[n].Agent == id {
			n++
		}
		before := w.sent[id]
		if err := w.grow(w.values - len(before) + n); err != nil {
			return err
		}
		sent := make([]uint64, n)
		for i := range n {
			sent[i] = w.hash(&rows[i])
			if _, known := slices.BinarySearch(before, sent[i]); known {
				continue
			}
			value := metadataValue(&rows[i])
			appendValue(part, id, value)
			if size += proto.Size(value); size < watchPart {
				continue
			}
			if err := send(part); err != nil {
				return err
			}
			part, size = &agentstatsv1.WatchMetadataResponse{}, 0
		}
		rows = rows[n:]
		w.values += n - len(before)
		if n == 0 {
			delete(w.sent, id)
			continue
		}
		slices.Sort(sent)
		w.sent[id] = sent
	}
	if len(part.GetAgents()) == 0 {
		return nil
	}
	return send(part)
}

// appendValue adds a value to the part. The values of an agent must be added one after
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
// changes accumulate.
const watchPause = 250 * time.Millisecond

// pause waits for more changes before the next message to a watcher.
func (s *Service) pause(ctx context.Context) error {
	timer := time.NewTimer(watchPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.server.Draining():
		return grpcserver.ErrDraining
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
