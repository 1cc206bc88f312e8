package agentapi

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchedName bounds the names of protocols and apps that watchers are told.
const maxWatchedName = 128

// statsWatch is what a watcher of reports has not acked. It outlives streams.
type statsWatch struct {
	limit   int
	metrics *metrics
	epoch   uint64
	// only are the agents that are watched; nil: all.
	only atomic.Pointer[map[agent.ID]struct{}]

	// telling is taken before mu.
	telling sync.Mutex
	// Guarded by telling.
	queue    []*agentstatsv1.AgentStats // taken from untold, in no response yet
	unacked  *agentstatsv1.WatchStatsResponse
	sequence int64 // of the newest response

	mu sync.Mutex
	// Guarded by mu.
	untold map[agent.ID]*agentstatsv1.AgentStats // at most limit
	wake   chan struct{}                         // has an element when something can be told
}

func newStatsWatch(ids []agent.ID, limit int, m *metrics) *statsWatch {
	w := &statsWatch{
		limit:   limit,
		metrics: m,
		epoch:   rand.Uint64() | 1, // not 0
		untold:  make(map[agent.ID]*agentstatsv1.AgentStats),
	}
	w.follow(ids)
	return w
}

// follow makes ids, or all if there are none, the agents that are watched from
// now on. It returns a channel, in place of the one before, that has an element
// when there may be more to tell than next has returned.
func (w *statsWatch) follow(ids []agent.ID) (wake <-chan struct{}) {
	if len(ids) == 0 {
		w.only.Store(nil)
	} else {
		only := make(map[agent.ID]struct{}, len(ids))
		for _, id := range ids {
			only[id] = struct{}{}
		}
		w.only.Store(&only)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake = make(chan struct{}, 1)
	return w.wake
}

// report implements reportWatcher.
func (w *statsWatch) report(r reportOf) {
	if only := w.only.Load(); only != nil {
		if _, watched := (*only)[r.agent]; !watched {
			return
		}
	}
	newest := copyStats(r.stats)
	w.mu.Lock()
	defer w.mu.Unlock()
	u := w.untold[r.agent]
	if u == nil {
		if len(w.untold) >= w.limit {
			w.metrics.watchDropped.Inc()
			return
		}
		u = &agentstatsv1.AgentStats{AgentId: r.agent[:], Stats: &agentstatsv1.Stats{}}
		w.untold[r.agent] = u
	}
	newest.RxPackets = saturatingAdd(newest.GetRxPackets(), u.GetStats().GetRxPackets())
	newest.RxBytes = saturatingAdd(newest.GetRxBytes(), u.GetStats().GetRxBytes())
	newest.TxPackets = saturatingAdd(newest.GetTxPackets(), u.GetStats().GetTxPackets())
	newest.TxBytes = saturatingAdd(newest.GetTxBytes(), u.GetStats().GetTxBytes())
	u.WorkspaceId = r.workspace[:]
	u.Stats = newest
	u.Reports++
	u.ReceivedAt = timestamppb.New(r.now)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// next returns the response that is to be acked next: the same until it is, nil
// if there is none. Unless it takes, what was reported since the last take
// gathers on. The response must not be changed.
func (w *statsWatch) next(takes bool) *agentstatsv1.WatchStatsResponse {
	w.telling.Lock()
	defer w.telling.Unlock()
	if w.unacked != nil {
		return w.unacked
	}
	if len(w.queue) == 0 && takes {
		w.queue = w.take()
	}
	if len(w.queue) == 0 {
		return nil
	}
	n, size := 0, 0
	for n < len(w.queue) && size < watchPart {
		size += proto.Size(w.queue[n])
		n++
	}
	w.sequence++
	w.unacked = &agentstatsv1.WatchStatsResponse{Agents: w.queue[:n:n], Epoch: w.epoch, Sequence: w.sequence}
	w.queue = w.queue[n:]
	return w.unacked
}

// take returns all that was not told, in the order of the agents' ids.
func (w *statsWatch) take() []*agentstatsv1.AgentStats {
	w.mu.Lock()
	untold := w.untold
	w.untold = make(map[agent.ID]*agentstatsv1.AgentStats)
	w.mu.Unlock()
	return slices.SortedFunc(maps.Values(untold), func(a, b *agentstatsv1.AgentStats) int {
		return slices.Compare(a.GetAgentId(), b.GetAgentId())
	})
}

// resume acks what a watcher has processed before it came back. The sequence of
// another epoch says nothing.
func (w *statsWatch) resume(epoch uint64, sequence int64) error {
	if epoch != w.epoch {
		return nil
	}
	_, err := w.ack(sequence)
	return err
}

// ack drops the response with the sequence, and tells whether it did. An older
// one was dropped before. An error is the status to end the stream with.
func (w *statsWatch) ack(sequence int64) (dropped bool, err error) {
	w.telling.Lock()
	defer w.telling.Unlock()
	if sequence < 0 || sequence > w.sequence {
		return false, invalid("acked_sequence", "want 0 to %d, got %d", w.sequence, sequence)
	}
	if w.unacked == nil || sequence != w.sequence {
		return false, nil
	}
	w.unacked = nil
	return true, nil
}

// copyStats returns a report without its samples, with bounded maps and counts
// that are not negative.
func copyStats(s *agentstatsv1.Stats) *agentstatsv1.Stats {
	return &agentstatsv1.Stats{
		ConnectionsByProto:          boundedCounts(s.GetConnectionsByProto()),
		ConnectionCount:             max(0, s.GetConnectionCount()),
		ConnectionMedianLatencyMs:   s.GetConnectionMedianLatencyMs(),
		RxPackets:                   max(0, s.GetRxPackets()),
		RxBytes:                     max(0, s.GetRxBytes()),
		TxPackets:                   max(0, s.GetTxPackets()),
		TxBytes:                     max(0, s.GetTxBytes()),
		SessionCountVscode:          max(0, s.GetSessionCountVscode()),
		SessionCountJetbrains:       max(0, s.GetSessionCountJetbrains()),
		SessionCountReconnectingPty: max(0, s.GetSessionCountReconnectingPty()),
		SessionCountSsh:             max(0, s.GetSessionCountSsh()),
		SessionCounts:               boundedCounts(s.GetSessionCounts()),
	}
}

// boundedCounts copies what watchers are told of a map: at most maxSessionNames.
func boundedCounts(counts map[string]int64) map[string]int64 {
	if len(counts) == 0 {
		return nil
	}
	out := make(map[string]int64, min(len(counts), maxSessionNames))
	for _, name := range sessionNames(counts) {
		if len(name) <= maxWatchedName {
			out[name] = max(0, counts[name])
		}
	}
	return out
}
