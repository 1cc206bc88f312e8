package agentapi

import (
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchedName bounds the names of protocols and apps that watchers are told.
const maxWatchedName = 128

// WatchStats implements agentstatsv1.CoderdServiceServer.
func (s *coderdService) WatchStats(req *agentstatsv1.WatchStatsRequest, stream grpc.ServerStreamingServer[agentstatsv1.WatchStatsResponse]) error {
	ids, err := watchIDs(req.GetAgentIds())
	if err != nil {
		return err
	}
	end, err := s.beginWatch(watchStats)
	if err != nil {
		return err
	}
	defer end()
	w := newStatsWatch(ids, s.Fleet.MaxAgents(), s.metrics)
	defer s.feed.watch(w)()

	ctx := stream.Context()
	for {
		select {
		case <-w.wake:
		case <-s.streams.draining:
			return errDraining
		case <-ctx.Done():
			return ctx.Err()
		}
		for part := range statsParts(w.take()) {
			if err := stream.Send(part); err != nil {
				return err
			}
		}
		if err := s.pause(ctx); err != nil {
			return err
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

// statsParts yields reports in parts of about watchPart bytes.
func statsParts(all []*agentstatsv1.AgentStats) func(func(*agentstatsv1.WatchStatsResponse) bool) {
	return func(yield func(*agentstatsv1.WatchStatsResponse) bool) {
		start, size := 0, 0
		for i, stats := range all {
			size += proto.Size(stats)
			if size < watchPart && i+1 < len(all) {
				continue
			}
			if !yield(&agentstatsv1.WatchStatsResponse{Agents: all[start : i+1]}) {
				return
			}
			start, size = i+1, 0
		}
	}
}

// statsWatch is what a watcher of reports has not been told.
type statsWatch struct {
	only    map[agent.ID]struct{} // nil: all agents
	limit   int
	metrics *metrics
	// wake has an element when something can be told.
	wake chan struct{}

	mu sync.Mutex
	// untold are the reports by agent, at most limit. Guarded by mu.
	untold map[agent.ID]*agentstatsv1.AgentStats
}

func newStatsWatch(ids []agent.ID, limit int, m *metrics) *statsWatch {
	w := &statsWatch{
		limit:   limit,
		metrics: m,
		wake:    make(chan struct{}, 1),
		untold:  make(map[agent.ID]*agentstatsv1.AgentStats),
	}
	if len(ids) > 0 {
		w.only = make(map[agent.ID]struct{}, len(ids))
		for _, id := range ids {
			w.only[id] = struct{}{}
		}
	}
	return w
}

// report implements reportWatcher.
func (w *statsWatch) report(r reportOf) {
	if _, watched := w.only[r.agent]; !watched && w.only != nil {
		return
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
