package contract

import (
	"bytes"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
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

// The ids of a report are kept with it in fields that Stats has not and reserves. Who
// does not know them leaves them out.
const (
	fieldOwner    protowire.Number = 1000
	fieldTemplate protowire.Number = 1001
)

// AppendIDs appends the ids of the owner and the template of a workspace to an encoded
// report, also those that are not known: the last ones count, so an agent cannot send
// any.
func AppendIDs(rest []byte, w *agent.Workspace) []byte {
	rest = protowire.AppendTag(rest, fieldOwner, protowire.BytesType)
	rest = protowire.AppendBytes(rest, w.OwnerID[:])
	rest = protowire.AppendTag(rest, fieldTemplate, protowire.BytesType)
	return protowire.AppendBytes(rest, w.Template.ID[:])
}

// idsOf returns what AppendIDs appended; nil: an id is not known.
func idsOf(unknown protoreflect.RawFields) (owner, template []byte) {
	for len(unknown) > 0 {
		field, kind, tag := protowire.ConsumeTag(unknown)
		size := protowire.ConsumeFieldValue(field, kind, unknown[max(0, tag):])
		if tag < 0 || size < 0 {
			return nil, nil // it was decoded, so this does not occur
		}
		value, _ := protowire.ConsumeBytes(unknown[tag:])
		unknown = unknown[tag+size:]
		switch {
		case kind != protowire.BytesType:
		case field == fieldOwner:
			owner = knownID(value)
		case field == fieldTemplate:
			template = knownID(value)
		}
	}
	return owner, template
}

func knownID(b []byte) []byte {
	if id, err := uuid.FromBytes(b); err != nil || id == uuid.Nil {
		return nil
	}
	return bytes.Clone(b)
}

// AgentStats is what a watcher is sent of an agent.
func AgentStats(sum *agent.ReportSum) *agentstatsv1.AgentStats {
	raw := &agentstatsv1.Stats{}
	_ = proto.Unmarshal(sum.Data, raw) // it was valid when it was taken in
	stats := boundedStats(raw)
	stats.RxPackets, stats.RxBytes = sum.RxPackets, sum.RxBytes
	stats.TxPackets, stats.TxBytes = sum.TxPackets, sum.TxBytes
	owner, template := idsOf(raw.ProtoReflect().GetUnknown())
	entry := &agentstatsv1.AgentStats{
		AgentId:     sum.Agent[:],
		WorkspaceId: sum.Workspace[:],
		OwnerId:     owner,
		TemplateId:  template,
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
