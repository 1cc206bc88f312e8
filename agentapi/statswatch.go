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
	away     bool  // the watcher is on another replica: there is no response

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
	stats := copyStats(r.stats)
	w.mu.Lock()
	defer w.mu.Unlock()
	u := w.untold[r.agent]
	if u == nil {
		if len(w.untold) >= w.limit {
			w.metrics.watchDropped.Add(float64(r.reports))
			return
		}
		u = &agentstatsv1.AgentStats{AgentId: r.agent[:]}
		w.untold[r.agent] = u
	}
	mergeReport(u, r.workspace[:], timestamppb.New(r.now), stats, r.reports)
	w.wakeLocked()
}

// mergeReport makes a report part of an entry: counts add up, the rest is that
// of the newer one. The entry keeps what it is given.
func mergeReport(u *agentstatsv1.AgentStats, workspace []byte, at *timestamppb.Timestamp, stats *agentstatsv1.Stats, reports int64) {
	newest, other := stats, u.GetStats()
	if u.GetReports() > 0 && at.AsTime().Before(u.GetReceivedAt().AsTime()) {
		newest, other = other, newest
	} else {
		u.WorkspaceId = workspace
		u.ReceivedAt = at
	}
	newest.RxPackets = saturatingAdd(newest.GetRxPackets(), other.GetRxPackets())
	newest.RxBytes = saturatingAdd(newest.GetRxBytes(), other.GetRxBytes())
	newest.TxPackets = saturatingAdd(newest.GetTxPackets(), other.GetTxPackets())
	newest.TxBytes = saturatingAdd(newest.GetTxBytes(), other.GetTxBytes())
	u.Stats = newest
	u.Reports = saturatingAdd(u.GetReports(), reports)
}

func (w *statsWatch) wakeLocked() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// putBack makes entries untold again. They may exceed the limit, by as much as
// they were counted before.
func (w *statsWatch) putBack(entries []*agentstatsv1.AgentStats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range entries {
		id := agent.ID(e.GetAgentId())
		if u := w.untold[id]; u != nil {
			mergeReport(u, e.GetWorkspaceId(), e.GetReceivedAt(), e.GetStats(), e.GetReports())
		} else {
			w.untold[id] = e
		}
	}
	if len(entries) > 0 {
		w.wakeLocked()
	}
}

// fold makes untold again what was told and not acked, and what was about to
// be: the watcher has its next response from another replica, until unfold.
func (w *statsWatch) fold() {
	w.telling.Lock()
	defer w.telling.Unlock()
	w.away = true
	told := make([]*agentstatsv1.AgentStats, 0, len(w.unacked.GetAgents()))
	for _, a := range w.unacked.GetAgents() {
		told = append(told, proto.CloneOf(a)) // the stream may be sending it
	}
	w.putBack(told)
	w.putBack(w.queue)
	w.unacked, w.queue = nil, nil
}

// unfold lets there be responses again.
func (w *statsWatch) unfold() {
	w.telling.Lock()
	defer w.telling.Unlock()
	w.away = false
}

// takeEach calls take with each untold entry, in any order, which is the
// caller's if it returns true; else it ends. What was told and not acked stays.
func (w *statsWatch) takeEach(take func(*agentstatsv1.AgentStats) bool) (all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, u := range w.untold {
		if !take(u) {
			return false
		}
		delete(w.untold, id)
	}
	return true
}

// replay reports to another watcher what is untold here, and stays so.
func (w *statsWatch) replay(to reportWatcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, u := range w.untold {
		to.report(reportOf{id, agent.ID(u.GetWorkspaceId()), u.GetReceivedAt().AsTime(), u.GetStats(), u.GetReports()})
	}
}

// waiting returns how many reports were not acked.
func (w *statsWatch) waiting() int64 {
	w.telling.Lock()
	defer w.telling.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	return countReports(w.unacked.GetAgents()) + countReports(w.queue) + countReports(slices.Collect(maps.Values(w.untold)))
}

func countReports(entries []*agentstatsv1.AgentStats) (n int64) {
	for _, e := range entries {
		n = saturatingAdd(n, e.GetReports())
	}
	return n
}

// next returns the response that is to be acked next: the same until it is, nil
// if there is none. Unless it takes, what was reported since the last take
// gathers on. The response must not be changed.
func (w *statsWatch) next(takes bool) *agentstatsv1.WatchStatsResponse {
	w.telling.Lock()
	defer w.telling.Unlock()
	if w.unacked != nil || w.away {
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
func (w *statsWatch) resume(last processed) error {
	if last.Epoch != w.epoch {
		return nil
	}
	_, err := w.ack(last.Sequence)
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

// copyStats returns a report without its samples, with bounded maps, and with 0
// for each value that is refused where reports are served.
func copyStats(s *agentstatsv1.Stats) *agentstatsv1.Stats {
	return &agentstatsv1.Stats{
		ConnectionsByProto:          boundedCounts(s.GetConnectionsByProto()),
		ConnectionCount:             within(agent.MaxReportedCount, s.GetConnectionCount()),
		ConnectionMedianLatencyMs:   boundedLatency(s.GetConnectionMedianLatencyMs()),
		RxPackets:                   within(agent.MaxReportedBytes, s.GetRxPackets()),
		RxBytes:                     within(agent.MaxReportedBytes, s.GetRxBytes()),
		TxPackets:                   within(agent.MaxReportedBytes, s.GetTxPackets()),
		TxBytes:                     within(agent.MaxReportedBytes, s.GetTxBytes()),
		SessionCountVscode:          within(agent.MaxReportedCount, s.GetSessionCountVscode()),
		SessionCountJetbrains:       within(agent.MaxReportedCount, s.GetSessionCountJetbrains()),
		SessionCountReconnectingPty: within(agent.MaxReportedCount, s.GetSessionCountReconnectingPty()),
		SessionCountSsh:             within(agent.MaxReportedCount, s.GetSessionCountSsh()),
		SessionCounts:               boundedCounts(s.GetSessionCounts()),
	}
}

// within returns v; 0 if it is not from 0 to limit.
func within(limit, v int64) int64 {
	if v < 0 || v > limit {
		return 0
	}
	return v
}

// boundedLatency returns a latency in milliseconds; 0 if it is refused. One
// below 0 says that there was nobody to measure it with.
func boundedLatency(ms float64) float64 {
	if ms >= -agent.MaxLatencyMS && ms <= agent.MaxLatencyMS {
		return ms
	}
	return 0 // of what is not a number, too
}

// boundedCounts copies what watchers are told of a map: at most maxSessionNames.
func boundedCounts(counts map[string]int64) map[string]int64 {
	if len(counts) == 0 {
		return nil
	}
	out := make(map[string]int64, min(len(counts), maxSessionNames))
	for _, app := range countedApps(counts) {
		if len(app.name) <= maxWatchedName {
			out[app.name] = within(agent.MaxReportedCount, app.count)
		}
	}
	return out
}
