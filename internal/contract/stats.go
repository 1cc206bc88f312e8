package contract

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxWatchedName bounds the names of protocols and apps that watchers are sent.
const maxWatchedName = 128

// SumOf returns the counts of a report, for those who watch reports: 0 for each that
// is refused where reports are served.
func SumOf(s agent.Stats, now time.Time) agent.ReportSum {
	sum := agent.ReportSum{
		Reports:    1,
		RxPackets:  within(agent.MaxReportedBytes, s.RxPackets),
		RxBytes:    within(agent.MaxReportedBytes, s.RxBytes),
		TxPackets:  within(agent.MaxReportedBytes, s.TxPackets),
		TxBytes:    within(agent.MaxReportedBytes, s.TxBytes),
		ReceivedAt: now,
	}
	if inUse(&s) {
		sum.LastUsedAt = now
	}
	return sum
}

// inUse reports whether a report shows that the workspace is in use: by a connection,
// or by a session. A count that is refused shows nothing.
func inUse(s *agent.Stats) bool {
	if within(agent.MaxReportedCount, s.ConnectionCount) > 0 {
		return true
	}
	for _, n := range s.Apps {
		if within(agent.MaxReportedCount, n) > 0 {
			return true
		}
	}
	return false
}

// EncodeRest encodes what watchers are sent of a report beside its counts.
func EncodeRest(s *agentstatsv1.Stats) []byte {
	// A map of 64 short names cannot fail to be encoded but by invalid UTF-8, which
	// the codec has refused.
	b, _ := proto.Marshal(boundedStats(s))
	return b
}

// AgentStats is what a watcher is sent of an agent.
func AgentStats(sum *agent.ReportSum) *agentstatsv1.AgentStats {
	raw := &agentstatsv1.Stats{}
	_ = proto.Unmarshal(sum.Data, raw) // it was valid when it was taken in
	stats := boundedStats(raw)
	stats.RxPackets, stats.RxBytes = sum.RxPackets, sum.RxBytes
	stats.TxPackets, stats.TxBytes = sum.TxPackets, sum.TxBytes
	entry := &agentstatsv1.AgentStats{
		AgentId:     sum.Agent[:],
		WorkspaceId: sum.Workspace[:],
		Stats:       stats,
		Reports:     sum.Reports,
		ReceivedAt:  timestamppb.New(sum.ReceivedAt),
	}
	if !sum.LastUsedAt.IsZero() {
		entry.LastUsedAt = timestamppb.New(sum.LastUsedAt)
	}
	return entry
}

// boundedStats returns a report without its samples and counts, with bounded maps, and
// with 0 for each value that is refused where reports are served.
func boundedStats(s *agentstatsv1.Stats) *agentstatsv1.Stats {
	return &agentstatsv1.Stats{
		ConnectionsByProto:          boundedCounts(s.GetConnectionsByProto()),
		ConnectionCount:             within(agent.MaxReportedCount, s.GetConnectionCount()),
		ConnectionMedianLatencyMs:   boundedLatency(s.GetConnectionMedianLatencyMs()),
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

// boundedCounts copies what watchers are sent of a map: at most agent.MaxSessionNames.
func boundedCounts(counts map[string]int64) map[string]int64 {
	if len(counts) == 0 {
		return nil
	}
	out := make(map[string]int64, min(len(counts), agent.MaxSessionNames))
	for _, app := range agent.FirstApps(counts) {
		if len(app.Name) <= maxWatchedName {
			out[app.Name] = within(agent.MaxReportedCount, app.Count)
		}
	}
	return out
}
