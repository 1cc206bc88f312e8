package simulate

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSummary(t *testing.T) {
	s := Summary{
		Agents: 25, ReportsSent: 52, ReportsAcked: 52, SamplesSent: 1560, MetadataSent: 1750, MetadataAcked: 1750,
		PushesSent: 7, PushesAcked: 6, FamiliesRefused: 40, Rebuilds: 3, Moves: 2, Refused: 3, Reconnects: 1, DurationSeconds: 61.25,
		Refusals:         map[string]int64{"series_limit": 2, "a_limit": 1},
		ReportAckSeconds: Quantiles{P50: 0.0005, P95: 0.004, P99: 0.0125},
		MetadataSeconds:  Quantiles{P50: 3.25, P95: 5, P99: 5.5},
	}
	require.True(t, s.Complete())
	var text bytes.Buffer
	require.NoError(t, s.WriteText(&text))
	require.Equal(t, `agents           25
duration         61.2 s
reports          52 sent, 52 acked
samples          1560 sent
metadata         1750 sent, 1750 durable
pushes           7 sent, 6 durable, 40 families refused
rebuilds         3
moves            2
acks of reports  0.5 ms median, 4.0 ms p95, 12.5 ms p99
acks of values   3.2 s median, 5.0 s p95, 5.5 s p99
reconnects       1
refused          3 (a_limit: 1) (series_limit: 2)
errors           0
`, text.String())
	text.Reset()
	require.NoError(t, s.WriteJSON(&text))
	require.JSONEq(t, `{
		"agents": 25, "reports_sent": 52, "reports_acked": 52, "samples_sent": 1560, "metadata_sent": 1750,
		"metadata_acked": 1750, "pushes_sent": 7, "pushes_acked": 6, "families_refused": 40, "rebuilds": 3, "moves": 2, "refused": 3, "errors": 0, "reconnects": 1, "duration_seconds": 61.25,
		"refusals": {"a_limit": 1, "series_limit": 2},
		"report_ack_seconds": {"p50": 0.0005, "p95": 0.004, "p99": 0.0125},
		"metadata_seconds": {"p50": 3.25, "p95": 5, "p99": 5.5}
	}`, text.String())
	require.Equal(t, 1, strings.Count(text.String(), "\n"))

	for _, change := range []func(*Summary){
		func(s *Summary) { s.Errors = 1 },
		func(s *Summary) { s.ReportsAcked-- },
		func(s *Summary) { s.MetadataAcked-- },
	} {
		incomplete := s
		change(&incomplete)
		require.False(t, incomplete.Complete())
	}
	s.Watched = &WatchSummary{Batches: 2, Reports: 52, Uses: 25}
	text.Reset()
	require.NoError(t, s.WriteText(&text))
	require.Contains(t, text.String(), "watched          52 reports in 2 batches, 25 uses of workspaces\n")
	s.Watched = nil
	s.Check = &CheckSummary{Checks: 30, Agents: 750, TransientDuplicates: 4, TransientMisses: 5}
	require.True(t, s.Complete())
	s.Check.Duplicates = 1
	require.False(t, s.Complete())
	s.Check.Duplicates, s.Check.Misses, s.Check.Violations = 0, 2, []string{"alice/dev/main", "bruno/dev/main"}
	require.False(t, s.Complete())
	text.Reset()
	require.NoError(t, s.WriteText(&text))
	_, checks, _ := strings.Cut(text.String(), "errors           0\n")
	require.Equal(t, `checks           30, of 750 agents in sum
served twice     0, and 4 in passing
missed           2, and 5 in passing
                 alice/dev/main
                 bruno/dev/main
`, checks)
	text.Reset()
	require.NoError(t, s.WriteJSON(&text))
	require.Contains(t, text.String(), `"check":{"checks":30,"agents":750,"duplicates":0,"misses":2,"transient_duplicates":4,"transient_misses":5,`+
		`"violations":["alice/dev/main","bruno/dev/main"]}`)
	require.Error(t, s.WriteText(failing{}))
	require.Error(t, s.WriteJSON(failing{}))
}
