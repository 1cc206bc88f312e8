package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// blocks returns the code blocks of a language in a document of docs.
func blocks(t *testing.T, name, language string) (found []string) {
	t.Helper()
	document, err := os.ReadFile("../docs/" + name)
	require.NoError(t, err)
	for _, rest := range strings.Split(string(document), "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(rest, "\n```")
		found = append(found, block)
	}
	require.NotEmpty(t, found, language)
	return found
}

// comparisons returns the queries of docs/adopting.md that compare, in order.
func comparisons(t *testing.T) (queries []string) {
	t.Helper()
	for _, block := range blocks(t, "adopting.md", "promql") {
		for query := range strings.SplitSeq(block, "\n\n") {
			queries = append(queries, query)
		}
	}
	for _, block := range blocks(t, "adopting.md", "yaml") {
		if !strings.HasPrefix(block, "groups:") {
			continue // of scrapes
		}
		var file struct {
			Groups []struct {
				Rules []struct{ Expr string }
			}
		}
		require.NoError(t, yaml.Unmarshal([]byte(block), &file))
		for _, group := range file.Groups {
			for _, rule := range group.Rules {
				queries = append(queries, rule.Expr)
			}
		}
	}
	return queries
}

// both are series that two instances of coderd have, each of them all.
func both(series ...string) string {
	var b strings.Builder
	for _, s := range series {
		for _, instance := range []string{"a", "b"} {
			fmt.Fprintf(&b, "  %s\n", strings.Replace(s, "{", `{job="coder",instance="`+instance+`",`, 1))
		}
	}
	return b.String()
}

// The queries of docs/adopting.md say that the sides agree, or what differs, as Prometheus
// evaluates them.
func TestComparisonsOfAdopting(t *testing.T) {
	ofCoderd := `load 30s
  coderd_api_requests_processed_total{job="coder",instance="a"} 0+60x20
  coderd_api_requests_processed_total{job="coder",instance="b"} 500+30x20
  coderd_api_concurrent_websockets{job="coder",instance="a"} 3x20
  coderd_api_concurrent_websockets{job="coder",instance="b"} 4x20
  coderd_api_request_latencies_seconds_bucket{job="coder",instance="a",le="1"} 0+60x20
  coderd_api_request_latencies_seconds_bucket{job="coder",instance="a",le="+Inf"} 0+60x20
` + both(
		`coderd_agents_up{username="ada",workspace_name="w1",template_name="t"} 2x20`,
		`coderd_agents_up{username="ada",workspace_name="w2",template_name="t"} 1x20`,
		`coderd_agents_connections{username="ada",workspace_name="w1",agent_name="one",status="connected"} 1x20`,
		`coderd_agents_connections{username="ada",workspace_name="w1",agent_name="two",status="connected"} 1x20`,
		`coderd_agents_connections{username="ada",workspace_name="w2",agent_name="one",status="disconnected"} 1x20`,
	) + `
  coderd_agentstats_rx_bytes{job="coder",instance="a",username="ada",workspace_name="w1",agent_name="one"} 5x20
  coderd_agentstats_rx_bytes{job="coder",instance="b",username="ada",workspace_name="w1",agent_name="two"} 5x20
`
	for _, c := range []struct {
		name, ofService string
		want            []string // of each query
	}{
		{"the sides agree", `
  coderd_api_requests_processed_total{job="agentstatsd"} 9000+90x20
  coderd_api_concurrent_websockets{job="agentstatsd"} 7x20
  coderd_api_request_latencies_seconds_bucket{job="agentstatsd",le="1"} 0+60x20
  coderd_api_request_latencies_seconds_bucket{job="agentstatsd",le="+Inf"} 0+60x20
  coderd_agents_up{job="agentstatsd",username="ada",workspace_name="w1",template_name="t"} 2x20
  coderd_agents_up{job="agentstatsd",username="ada",workspace_name="w2",template_name="t"} 0x20
  coderd_agents_connections{job="agentstatsd",username="ada",workspace_name="w1",agent_name="one",status="connected"} 1x20
  coderd_agents_connections{job="agentstatsd",username="ada",workspace_name="w1",agent_name="two",status="connected"} 1x20
  coderd_agents_connections{job="agentstatsd",username="ada",workspace_name="w2",agent_name="one",status="disconnected"} 1x20
  coderd_agentstats_rx_bytes{job="agentstatsd",username="ada",workspace_name="w1",agent_name="one"} 5x20
  coderd_agentstats_rx_bytes{job="agentstatsd",username="ada",workspace_name="w1",agent_name="two"} 5x20
  agentstatsd_samples_refused_total{job="agentstatsd",reason="invalid_name"} 5x20
`, []string{
			"{} 0", "{} 0", "",
			"{} 0", "{} 0", "", `{status="connected"} 0 {status="disconnected"} 0`, "",
			`{job="agentstatsd"} 3 {job="coder"} 3`, `{job="agentstatsd"} 0.99 {job="coder"} 0.99`,
		}},
		{"the service lacks something", `
  coderd_api_requests_processed_total{job="agentstatsd"} 9000+60x20
  coderd_api_concurrent_websockets{job="agentstatsd"} 6x20
  coderd_agents_up{job="agentstatsd",username="ada",workspace_name="w1",template_name="t"} 1x20
  coderd_agents_connections{job="agentstatsd",username="ada",workspace_name="w1",agent_name="one",status="connected"} 1x20
  coderd_agents_connections{job="agentstatsd",username="ada",workspace_name="w2",agent_name="one",status="disconnected"} 1x20
  coderd_agentstats_rx_bytes{job="agentstatsd",username="ada",workspace_name="w1",agent_name="one"} 5x20
  agentstatsd_samples_refused_total{job="agentstatsd",reason="invalid_name"} 0+3x20
`, []string{
			"{} 1", "{} 1", `{__name__="coderd_api_request_latencies_seconds_bucket"} 2`,
			"{} 1", "{} 1", `{agent_name="two", username="ada", workspace_name="w1"} 1`,
			`{status="connected"} 1 {status="disconnected"} 0`, `{reason="invalid_name"} 0.1`,
			`{job="agentstatsd"} 2 {job="coder"} 3`, `{job="coder"} 0.99`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			storage := promqltest.LoadedStorage(t, strings.ReplaceAll(ofCoderd+c.ofService, "\n\n", "\n"))
			p := &prometheus{db: storage.DB, engine: promqltest.NewTestEngine(t, false, 0, 1_000_000)}
			queries := comparisons(t)
			require.Len(t, queries, len(c.want))
			for i, query := range queries {
				var got []string
				for _, s := range p.query(t, query, time.Unix(600, 0)) {
					got = append(got, fmt.Sprintf("%s %.4g", s.Metric, s.F))
				}
				slices.Sort(got)
				require.Equal(t, c.want[i], strings.Join(got, " "), "%s", query)
			}
		})
	}
}
