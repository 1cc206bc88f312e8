package aggregator

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func TestExpositionText(t *testing.T) {
	a := newTest(t, Options{})
	ident := identity("main")
	ident.WorkspaceName = "w\"s\\\n"
	a.Open(id(1), ident, agent.Session{Epoch: 1})
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), &report{
		stats: agent.Stats{
			RxBytes: 1 << 40, TxBytes: 7, ConnectionCount: 3, MedianLatencyMS: 1.5,
			Sessions: agent.Sessions{VSCode: 1, JetBrains: 2, ReconnectingPTY: 3, SSH: 4},
		},
		samples: []agent.Sample{
			sample("agent_scripts_executed_total", agent.Counter, 2, "success", "true"),
			sample("coderd_agentstats_currently_reachable_peers", agent.Gauge, 5, "connection_type", "p2p"),
			sample("ssh_sessions", agent.Gauge, 0.25, "zone", "a", "app", "x"),
			sample("ssh_sessions", agent.Gauge, 1e300),
			sample("conns", agent.Untyped, -3),
		},
	})))
	golden(t, "testdata/exposition.txt", text(t, a))
	_, err := scrapeBoth(a)
	require.NoError(t, err)
}

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// The documented families have HELP and TYPE before anything was reported; in
// protobuf there is nothing yet.
func TestExpositionOfNothing(t *testing.T) {
	a := newTest(t, Options{})
	golden(t, "testdata/nothing.txt", text(t, a))
	require.Empty(t, protobuf(t, a))
}

func TestOptionsAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		opts Options
		want string
	}{
		"interval": {Options{ReportInterval: time.Millisecond}, "report interval: want at least 1s, got 1ms"},
		"ttl":      {Options{ReportInterval: time.Minute, SeriesTTL: time.Minute}, "series TTL: want at least twice the report interval of 1m0s, got 1m0s"},
		"series":   {Options{MaxSeries: -1}, "max series: want at least 0, got -1"},
		"agent":    {Options{MaxSeriesPerAgent: -1}, "max series per agent: want at least 0, got -1"},
		"group by": {
			Options{GroupBy: []string{"username", "nonsense"}},
			`"nonsense" is not a valid aggregation label; only one or more of "agent_name, template_name, username, workspace_name" are acceptable`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(c.opts, prometheus.NewRegistry())
			require.EqualError(t, err, "aggregator options: "+c.want)
		})
	}
	reg := prometheus.NewRegistry()
	_, err := New(Options{}, reg)
	require.NoError(t, err)
	_, err = New(Options{}, reg)
	require.ErrorAs(t, err, &prometheus.AlreadyRegisteredError{})
}
