package aggregator

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// vectors are events and what upstream serves after them.
type vectors struct {
	Agents map[string]struct {
		Username  string
		Workspace string
		AgentName string `json:"agent_name"`
	}
	Cases []struct {
		Name       string
		Provenance string
		Config     struct {
			AggregateBy []string `json:"aggregate_by"`
		}
		Events []struct {
			At              float64 `json:"at_s"`
			Agent           string
			TxBytes         int64   `json:"tx_bytes"`
			RxBytes         int64   `json:"rx_bytes"`
			VSCode          int64   `json:"session_vscode"`
			JetBrains       int64   `json:"session_jetbrains"`
			ReconnectingPTY int64   `json:"session_reconnecting_pty"`
			SSH             int64   `json:"session_ssh"`
			Connections     int64   `json:"connection_count"`
			LatencyMS       float64 `json:"connection_median_latency_ms"`
		}
		Ticks []struct {
			At     float64 `json:"at_s"`
			Exact  bool    `json:"expect_exact"`
			Expect []struct {
				Family string
				Labels map[string]string
				Value  float64
			}
		}
	}
}

// onPurpose are the cases of the vectors in which ours differs from upstream,
// why, and what ours serves after each tick. Only what differs is listed; a
// value of nil says that the series is not there.
var onPurpose = map[string]struct {
	why   string
	ticks []map[string]any
}{
	"bytes are window sums not totals; latest row wins for the rest; second window starts at the first tick": {
		why: "the window trails the newest report, 70 s: (10, 70] has the reports of 40 s and 70 s",
		ticks: []map[string]any{{}, {
			"rx_bytes workspace-1": 57, "tx_bytes workspace-1": 8,
		}},
	},
	"a row with latency <= 0 counts for bytes but can not be the latest row": {
		why: "the newest report counts; only the latency is absent when it has none",
		ticks: []map[string]any{{
			"connection_count workspace-1": 0, "session_count_ssh workspace-1": 0,
			"connection_median_latency_seconds workspace-1": nil,
		}},
	},
	"an agent with only latency <= 0 rows in the window has no series at all, although it moved bytes": {
		why: "what is known does not vanish because the latency is not",
		ticks: []map[string]any{{
			"rx_bytes workspace-1": 100, "tx_bytes workspace-1": 10, "connection_count workspace-1": 2,
			"session_count_vscode workspace-1": 0, "session_count_jetbrains workspace-1": 0,
			"session_count_reconnecting_pty workspace-1": 0, "session_count_ssh workspace-1": 1,
		}},
	},
	"vanished agent drops out at the next non-empty window; an empty window keeps the old samples for ever": {
		why: "series expire 2 min after the agent's last report, at 130 s and 131 s, whatever others do",
		ticks: []map[string]any{{}, {}, {
			"rx_bytes workspace-2": 5, "tx_bytes workspace-2": 6,
		}},
	},
	"query error: old samples stay, and the window of the failed tick is lost": {
		why: "no query, nothing lost: the report of 70 s is served at 120 s, and is out of (70, 130] at 180 s",
		ticks: []map[string]any{{}, {
			// Upstream's last good window was that of 10 s, which (10, 70] is past.
			"rx_bytes workspace-1": 100, "tx_bytes workspace-1": 100,
		}, {}},
	},
	"late flush is lost; row newer than the tick start but already stored is counted twice": {
		why: "each report counts as it comes and leaves the window as it ages: at 60 s those of 58 s and 59 s, at 120 s all of (40, 100]",
		ticks: []map[string]any{{"rx_bytes workspace-1": 11}, {
			"rx_bytes workspace-1": 1013,
		}},
	},
	"aggregate by username: bytes sum, the other six are last-writer-wins in query order": {
		why: "counts add up; the latency is the mean weighted by connections: (2*5 + 7*9) ms / 9",
		ticks: []map[string]any{{
			"connection_count": 9, "session_count_ssh": 5, "connection_median_latency_seconds": 0.073 / 9,
			"session_count_vscode": 0, "session_count_jetbrains": 0, "session_count_reconnecting_pty": 0,
		}},
	},
}

func TestUpstreamVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/agentstats.json")
	require.NoError(t, err)
	var v vectors
	require.NoError(t, json.Unmarshal(data, &v))
	upstream := 0
	for _, c := range v.Cases {
		if len(c.Events) == 0 {
			continue // of an experiment that replaces the agents' values
		}
		t.Run(c.Name, func(t *testing.T) {
			differs, onPurpose := onPurpose[c.Name]
			if c.Provenance == "upstream-test" {
				upstream++
				require.False(t, onPurpose)
			}
			a := newTest(t, Options{GroupBy: c.Config.AggregateBy})
			start := a.started
			at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
			events := c.Events
			for i, tick := range c.Ticks {
				rest := events[:0:0]
				for _, e := range events {
					if e.At > tick.At {
						rest = append(rest, e)
						continue
					}
					who := v.Agents[e.Agent]
					id := agent.ID{15: e.Agent[1]}
					a.Open(id, agent.Identity{Username: who.Username, WorkspaceName: who.Workspace, AgentName: who.AgentName, TemplateName: "tpl"},
						agent.Session{Epoch: 1})
					require.Empty(t, refusals(a.Report(id, 1, at(e.At), &report{stats: agent.Stats{
						RxBytes: e.RxBytes, TxBytes: e.TxBytes, ConnectionCount: e.Connections, MedianLatencyMS: e.LatencyMS,
						Sessions: agent.Sessions{VSCode: e.VSCode, JetBrains: e.JetBrains, ReconnectingPTY: e.ReconnectingPTY, SSH: e.SSH},
					}})))
				}
				events = rest
				a.expire(at(tick.At))

				want := make(map[string]float64)
				series := func(family, workspace string) string {
					l := map[string]string{model.MetricNameLabel: "coderd_agentstats_" + family}
					if workspace != "" {
						l["username"], l["agent_name"], l["workspace_name"] = "testuser", "example", workspace
					} else if len(c.Config.AggregateBy) > 0 && c.Config.AggregateBy[0] == "username" {
						l["username"] = "testuser"
					}
					return labels.FromMap(l).String()
				}
				for _, e := range tick.Expect {
					e.Labels[model.MetricNameLabel] = e.Family
					want[labels.FromMap(e.Labels).String()] = e.Value
				}
				if onPurpose {
					for key, v := range differs.ticks[i] {
						family, workspace, _ := strings.Cut(key, " ")
						switch v := v.(type) {
						case nil:
							require.Contains(t, want, series(family, workspace))
							delete(want, series(family, workspace))
						case int:
							want[series(family, workspace)] = float64(v)
						case float64:
							want[series(family, workspace)] = v
						}
					}
				}
				got, err := scrapeBoth(a)
				require.NoError(t, err)
				for key, v := range want {
					require.Contains(t, got.values, key, "at %v s", tick.At)
					require.InEpsilon(t, 1+v, 1+value(got, key), 1e-12, "%s at %v s", key, tick.At)
				}
				if tick.Exact {
					require.Len(t, got.values, len(want), "at %v s", tick.At)
				}
			}
		})
	}
	require.Equal(t, 1, upstream)
}
