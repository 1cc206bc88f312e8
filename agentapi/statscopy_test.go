package agentapi

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Watchers are told what is served: a value that is refused is told to nobody.
func TestCopyStatsIsBounded(t *testing.T) {
	filled := func(bytes, count int64, latency float64) *agentstatsv1.Stats {
		return &agentstatsv1.Stats{
			ConnectionsByProto: map[string]int64{"TCP": count}, ConnectionCount: count, ConnectionMedianLatencyMs: latency,
			RxPackets: bytes, RxBytes: bytes, TxPackets: bytes, TxBytes: bytes,
			SessionCountVscode: count, SessionCountJetbrains: count, SessionCountReconnectingPty: count, SessionCountSsh: count,
			SessionCounts: map[string]int64{"ssh": count},
		}
	}
	most := filled(agent.MaxReportedBytes, agent.MaxReportedCount, agent.MaxLatencyMS)
	require.Empty(t, cmp.Diff(most, copyStats(most), protocmp.Transform()))
	unmeasured := filled(0, 0, -0.001)
	require.Empty(t, cmp.Diff(unmeasured, copyStats(unmeasured), protocmp.Transform()))
	nothing := filled(0, 0, 0)
	for _, latency := range []float64{agent.MaxLatencyMS + 1, math.MaxFloat64, math.Inf(1), math.Inf(-1), math.NaN()} {
		for _, v := range []int64{-1, math.MinInt64, agent.MaxReportedBytes + 1, math.MaxInt64} {
			require.Empty(t, cmp.Diff(nothing, copyStats(filled(v, v, latency)), protocmp.Transform()), "%v, %v ms", v, latency)
		}
	}
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
		} {
			require.Equal(t, used, inUse(s), "%v", s)
		}
	}
}
