package stock

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/codertest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/simulate/coderagent"
)

// scrape returns the lines of some families.
func scrape(t *testing.T, c *Coderd, prefixes ...string) (lines []string) {
	t.Helper()
	w := httptest.NewRecorder()
	c.Metrics().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusOK, w.Code)
	body, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	for line := range strings.Lines(string(body)) {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// What an agent says is in the gauges from the next round on. What it forwards is there at
// once, and the duration of its build.
func TestCoderd(t *testing.T) {
	c, err := New(Options{Workspaces: 1, Unreachable: 1, ReportInterval: time.Second})
	require.NoError(t, err)
	server := httptest.NewServer(c.API())
	defer server.Close()
	states := []string{"coderd_agents_", "coderd_agentstats_"}
	before := []string{
		`coderd_agents_apps{agent_name="main",app_name="Jupyter",health="initializing",username="bruno",workspace_name="ws-1"} 1`,
		`coderd_agents_apps{agent_name="main",app_name="VS Code",health="initializing",username="alice",workspace_name="ws-0"} 1`,
		`coderd_agents_apps{agent_name="main",app_name="VS Code",health="initializing",username="bruno",workspace_name="ws-1"} 1`,
		`coderd_agents_connections{agent_name="main",lifecycle_state="created",status="connecting",tailnet_node="unknown",username="alice",workspace_name="ws-0"} 1`,
		`coderd_agents_connections{agent_name="main",lifecycle_state="created",status="connecting",tailnet_node="unknown",username="bruno",workspace_name="ws-1"} 1`,
		`coderd_agents_up{template_name="docker",template_version="v7",username="alice",workspace_name="ws-0"} 1`,
		`coderd_agents_up{template_name="docker",template_version="v7",username="bruno",workspace_name="ws-1"} 1`,
	}
	require.Equal(t, before, scrape(t, c, states...))

	require.Len(t, c.Tokens(), 1)
	s, err := codertest.Dial(t.Context(), server.Listener.Addr().String(), c.Tokens()[0], codertest.DialOptions{})
	require.NoError(t, err)
	defer func() { _ = s.Close() }()
	call := func(name string, request []byte, err error) []byte {
		t.Helper()
		require.NoError(t, err)
		answer, err := s.Call(t.Context(), name, request)
		require.NoError(t, err)
		return answer
	}
	manifest, err := coderagent.ParseManifest(call(codertest.GetManifest, nil, nil))
	require.NoError(t, err)
	require.Equal(t, c.Agents()[0].ID, manifest.AgentID)
	require.Equal(t, []string{"0_key", "1_key", "2_key", "3_key"}, manifest.MetadataKeys)
	interval, err := coderagent.ReportInterval(call(codertest.UpdateStats, nil, nil))
	require.NoError(t, err)
	require.Equal(t, time.Second, interval)
	network, err := s.Stream(t.Context(), codertest.Coordinate)
	require.NoError(t, err)
	node := codertest.Node{ID: 0x1234, Preferred: 1, Latencies: map[string]float64{"1-v4": 0.25, "9-v6": 0.5}}
	require.NoError(t, network.MsgSend(&codertest.Message{Bytes: node.UpdateSelf()}, codertest.Encoding{}))
	for _, state := range []agentstatsv1.Lifecycle_State{agentstatsv1.Lifecycle_STATE_STARTING, agentstatsv1.Lifecycle_STATE_READY} {
		request, err := coderagent.LifecycleRequest(&agentstatsv1.Lifecycle{State: state, ChangedAt: timestamppb.Now()})
		call(codertest.UpdateLifecycle, request, err)
	}
	call(codertest.BatchUpdateAppHealths, coderagent.AppHealthsRequest(manifest.Apps, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY), nil)
	report := func(latency float64) {
		request, err := coderagent.StatsRequest(&agentstatsv1.Stats{
			RxBytes: 10, TxBytes: 20, ConnectionCount: 3, ConnectionMedianLatencyMs: latency, SessionCounts: map[string]int64{"cursor": 2},
			Metrics: []*agentstatsv1.Stats_Metric{{
				Name: "agent_scripts_executed_total", Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Value: 4,
				Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "success", Value: "true"}, {Name: "none"}},
			}},
		})
		call(codertest.UpdateStats, request, err)
	}
	report(-1)
	require.Eventually(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.workspaces[0].agents[0].node != nil }, 10*time.Second, time.Millisecond)
	require.Equal(t, before, scrape(t, c, states...))
	require.Equal(t, []string{
		`agent_scripts_executed_total{agent_name="main",success="true",template_name="docker",username="alice",workspace_name="ws-0"} 4`,
		`coderd_template_workspace_build_duration_seconds_count{is_prebuild="false",organization_name="coder",status="success",template_name="docker",transition="start"} 1`,
	}, scrape(t, c, "agent_scripts", "coderd_template_workspace_build_duration_seconds_count"))

	c.metrics.round(time.Now())
	after := []string{
		before[0], strings.Replace(before[1], "initializing", "healthy", 1), before[2],
		`coderd_agents_connection_latencies_seconds{agent_name="main",derp_region="Frankfurt",preferred="true",username="alice",workspace_name="ws-0"} 0.25`,
		`coderd_agents_connection_latencies_seconds{agent_name="main",derp_region="Unnamed 9",preferred="false",username="alice",workspace_name="ws-0"} 0.5`,
		`coderd_agents_connections{agent_name="main",lifecycle_state="created",status="connecting",tailnet_node="unknown",username="bruno",workspace_name="ws-1"} 1`,
		`coderd_agents_connections{agent_name="main",lifecycle_state="ready",status="connected",tailnet_node="nodeid:1234",username="alice",workspace_name="ws-0"} 1`,
		before[5], before[6],
	}
	require.Equal(t, after, scrape(t, c, states...), "none of reports without a latency")
	report(20)
	c.metrics.round(time.Now())
	stats := scrape(t, c, "coderd_agentstats_")
	require.Equal(t, []string{
		`coderd_agentstats_connection_count{agent_name="main",username="alice",workspace_name="ws-0"} 3`,
		`coderd_agentstats_connection_median_latency_seconds{agent_name="main",username="alice",workspace_name="ws-0"} 0.02`,
		`coderd_agentstats_rx_bytes{agent_name="main",username="alice",workspace_name="ws-0"} 20`,
		`coderd_agentstats_session_count_jetbrains{agent_name="main",username="alice",workspace_name="ws-0"} 0`,
		`coderd_agentstats_session_count_reconnecting_pty{agent_name="main",username="alice",workspace_name="ws-0"} 0`,
		`coderd_agentstats_session_count_ssh{agent_name="main",username="alice",workspace_name="ws-0"} 0`,
		`coderd_agentstats_session_count_vscode{agent_name="main",username="alice",workspace_name="ws-0"} 2`,
		`coderd_agentstats_tx_bytes{agent_name="main",username="alice",workspace_name="ws-0"} 40`,
	}, stats)

	_ = s.Close()
	require.Eventually(t, func() bool { return c.Connections() == 0 }, 10*time.Second, time.Millisecond)
	c.metrics.round(time.Now().Add(connectionTimeout + time.Minute))
	require.Equal(t, []string{
		`coderd_agents_connections{agent_name="main",lifecycle_state="created",status="timeout",tailnet_node="unknown",username="bruno",workspace_name="ws-1"} 1`,
		`coderd_agents_connections{agent_name="main",lifecycle_state="ready",status="disconnected",tailnet_node="unknown",username="alice",workspace_name="ws-0"} 1`,
	}, scrape(t, c, "coderd_agents_connections"))
	require.Equal(t, stats, scrape(t, c, "coderd_agentstats_"), "gauges stay while nobody reports")

	token := c.Tokens()[0]
	c.Stop(0)
	c.metrics.round(time.Now())
	require.Equal(t, []string{strings.Replace(before[5], "} 1", "} 0", 1), before[6]}, scrape(t, c, "coderd_agents_up"))
	_, err = codertest.Dial(t.Context(), server.Listener.Addr().String(), token, codertest.DialOptions{})
	require.ErrorContains(t, err, "status 401")
	c.Rebuild(0)
	require.NotEqual(t, token, c.Tokens()[0])
}
