package agentapi

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// watched returns what a watcher gets of one report, which is read from the wire.
func watched(t *testing.T, s *agentstatsv1.Stats) *agentstatsv1.AgentStats {
	t.Helper()
	encoded, err := proto.Marshal(&agentstatsv1.ConnectRequest{Sequence: 1, Stats: s})
	require.NoError(t, err)
	f := wire.NewFrame(agent.ID{}, 1<<20)
	require.NoError(t, f.UnmarshalMessage(mem.BufferSlice{mem.SliceBuffer(encoded)}))
	defer f.Release()
	require.NotNil(t, f.Stats)
	sum := contract.SumOf(f.Stats.Stats(), time.Unix(1, 0))
	sum.Data = f.Stats.Rest()
	require.LessOrEqual(t, len(sum.Data), 18<<10)

	// A report that the generated code has decoded leads to the same.
	m := wire.NewMessageReport(s)
	defer m.Release()
	other := contract.SumOf(m.Stats(), time.Unix(1, 0))
	other.Data = contract.EncodeRest(s)
	require.Empty(t, cmp.Diff(contract.AgentStats(&sum), contract.AgentStats(&other), protocmp.Transform()))
	return contract.AgentStats(&sum)
}

// Watchers get what is served. They do not get refused values.
func TestWatchedStatsAreBounded(t *testing.T) {
	// fill is what each field of a kind has.
	type fill struct {
		bytes, count int64
		latency      float64
	}
	filled := func(f fill) *agentstatsv1.Stats {
		return &agentstatsv1.Stats{
			ConnectionsByProto: map[string]int64{"TCP": f.count}, ConnectionCount: f.count, ConnectionMedianLatencyMs: f.latency,
			RxPackets: f.bytes, RxBytes: f.bytes, TxPackets: f.bytes, TxBytes: f.bytes,
			SessionCountVscode: f.count, SessionCountJetbrains: f.count, SessionCountReconnectingPty: f.count, SessionCountSsh: f.count,
			SessionCounts: map[string]int64{"ssh": f.count},
		}
	}
	most := filled(fill{bytes: agent.MaxReportedBytes, count: agent.MaxReportedCount, latency: agent.MaxLatencyMS})
	require.Empty(t, cmp.Diff(most, watched(t, most).GetStats(), protocmp.Transform()))
	unmeasured := filled(fill{latency: -0.001})
	require.Empty(t, cmp.Diff(unmeasured, watched(t, unmeasured).GetStats(), protocmp.Transform()))
	nothing := filled(fill{})
	for _, latency := range []float64{agent.MaxLatencyMS + 1, math.MaxFloat64, math.Inf(1), math.Inf(-1), math.NaN()} {
		for _, v := range []int64{-1, math.MinInt64, agent.MaxReportedBytes + 1, math.MaxInt64} {
			require.Empty(t, cmp.Diff(nothing, watched(t, filled(fill{bytes: v, count: v, latency: latency})).GetStats(), protocmp.Transform()), "%v, %v ms", v, latency)
		}
	}
}

// Of a report that is all names few are kept, and delivered.
func TestWatchedNamesAreBounded(t *testing.T) {
	counts := map[string]int64{"vscode": 1, strings.Repeat("a", 129): 1, strings.Repeat("a", 128): -1}
	for i := range 100 {
		counts["b"+strings.Repeat("x", i)] = 1
	}
	s := &agentstatsv1.Stats{SessionCounts: counts, ConnectionsByProto: counts}
	kept := contract.EncodeRest(s)
	require.LessOrEqual(t, len(kept), 18<<10)
	got := contract.AgentStats(&agent.ReportSum{Data: kept}).GetStats()
	for _, names := range []map[string]int64{got.GetSessionCounts(), got.GetConnectionsByProto()} {
		require.Len(t, names, 63, "64 are looked at, and one of them is too long")
		require.Equal(t, int64(1), names["vscode"])
		require.Contains(t, names, strings.Repeat("a", 128))
		require.Zero(t, names[strings.Repeat("a", 128)])
	}
	// From the wire: a plain report has few sessions, but any number of protocols.
	s.SessionCounts = nil
	require.Len(t, watched(t, s).GetStats().GetConnectionsByProto(), 63)
}

// A count that is refused is no use of a workspace either.
func TestUseIsBounded(t *testing.T) {
	for n, used := range map[int64]bool{
		math.MinInt64: false, -1: false, 0: false, 1: true, agent.MaxReportedCount: true, agent.MaxReportedCount + 1: false, math.MaxInt64: false,
	} {
		for _, s := range []*agentstatsv1.Stats{
			{ConnectionCount: n},
			{SessionCountVscode: n},
			{SessionCountJetbrains: n},
			{SessionCountReconnectingPty: n},
			{SessionCountSsh: n},
			{SessionCounts: map[string]int64{"ssh": n}},
			{SessionCounts: map[string]int64{"an app of the future": n}},
		} {
			require.Equal(t, used, watched(t, s).GetLastUsedAt() != nil, "%v", s)
		}
	}
}
