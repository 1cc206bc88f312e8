package integration

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// How Coder's own dashboards and alerts select, by the defaults that their chart documents.
const (
	ofCoderd      = "pod=~`coder.*`, pod!~`.*provisioner.*`, namespace=`coder`"
	ofWorkspaces  = "namespace=`coder-workspaces`"
	coderdTraffic = "coderd_agentstats_rx_bytes{" + ofCoderd + "}"
)

// workspacePods are the pods of workspaces by owner and name, with their node. Coder's template
// for Kubernetes labels them so.
const workspacePods = `
  label_replace(label_replace(
      kube_pod_labels{` + ofWorkspaces + `} * on (namespace, pod) group_left (node) kube_pod_info{` + ofWorkspaces + `},
    "username", "$1", "label_com_coder_user_username", "(.+)"), "workspace_name", "$1", "label_com_coder_workspace_name", "(.+)")`

// coderExpression is of one of the three kinds that Coder's dashboards and alerts have.
type coderExpression struct {
	name, expr string
	alert      string // that fires while expr has a value; empty: none
	// want are the series with what replaces coderd's; ofOthers: also without that, as the
	// series are of somebody else.
	want     map[string]float64
	ofOthers bool
}

// observed is a scrape of the binary as a Prometheus has it, and what other targets have.
type observed struct {
	series []labels.Labels
	values []string // as promtool has them
	ours   map[string]float64
}

func (o *observed) add(l labels.Labels, values string) {
	o.series, o.values = append(o.series, l), append(o.values, values)
}

// observe scrapes s as a pod of a namespace, with the rules.
func observe(t *testing.T, s *service, namespace, pod string, rules []*relabel.Config) *observed {
	t.Helper()
	families := []string{
		"coderd_provisionerd_num_daemons", "coderd_workspace_builds_total", "coderd_agents_up", "coderd_agentstats_rx_bytes",
		"agentstatsd_workspace_info", "coderd_api_concurrent_websockets", "process_resident_memory_bytes", "agent_scripts_executed_total",
	}
	o := &observed{ours: make(map[string]float64)}
	_, body := s.scrape(t, "/metrics", "Accept", acceptText)
	builds := 0
	eachSample(t, body, acceptText, func(l labels.Labels, value float64) {
		if !slices.Contains(families, l.Get(model.MetricNameLabel)) {
			return
		}
		b := labels.NewBuilder(l)
		for name, value := range map[string]string{"job": "agentstatsd", "instance": s.httpAddr, "namespace": namespace, "pod": pod} {
			b.Set(name, value)
		}
		b.Reset(b.Labels())
		require.True(t, relabel.ProcessBuilder(b, rules...))
		l = b.Labels()
		if l.Get(model.MetricNameLabel) != "coderd_workspace_builds_total" {
			o.add(l, fmt.Sprintf("%v+0x30", value))
			o.ours[l.String()] = value
			return
		}
		builds++ // in the demo none fails
		if builds == 1 {
			o.add(labels.NewBuilder(l).Set("status", "failed").Labels(), "0+1x30")
		}
	})
	require.Positive(t, builds)

	for i, replica := range []string{"coder-7b9d-x", "coder-7b9d-y"} {
		o.add(labels.FromStrings(model.MetricNameLabel, "up", "job", "coder", "namespace", "coder", "pod", replica), "1+0x30")
		o.add(labels.FromStrings(model.MetricNameLabel, "process_resident_memory_bytes", "job", "coder", "namespace", "coder", "pod", replica), fmt.Sprintf("%d+0x30", 100*(i+1)))
		o.add(labels.FromStrings(model.MetricNameLabel, "kube_pod_container_resource_limits", "resource", "memory", "namespace", "coder", "pod", replica), "1000+0x30")
	}
	o.add(labels.FromStrings(model.MetricNameLabel, "up", "job", "agentstatsd", "namespace", namespace, "pod", pod), "1+0x30")
	o.add(labels.FromStrings(model.MetricNameLabel, "kube_pod_info", "namespace", namespace, "pod", pod, "node", "node-9"), "1+0x30")
	for i, l := range o.of("coderd_agents_up") {
		pod := fmt.Sprintf("ws-%d", i)
		o.add(labels.FromStrings(model.MetricNameLabel, "kube_pod_labels", "namespace", "coder-workspaces", "pod", pod,
			"label_com_coder_user_username", l.Get("username"), "label_com_coder_workspace_name", l.Get("workspace_name")), "1+0x30")
		o.add(labels.FromStrings(model.MetricNameLabel, "kube_pod_info", "namespace", "coder-workspaces", "pod", pod, "node", nodeOf(l)), "1+0x30")
	}
	return o
}

// nodeOf spreads workspaces over two nodes.
func nodeOf(l labels.Labels) string { return fmt.Sprintf("node-%d", len(l.Get("workspace_name"))%2) }

// of returns the series of a family.
func (o *observed) of(family string) (found []labels.Labels) {
	for _, l := range o.series {
		if l.Get(model.MetricNameLabel) == family {
			found = append(found, l)
		}
	}
	return found
}

// sum adds up a family by what key says.
func (o *observed) sum(family string, key func(labels.Labels) string) map[string]float64 {
	sums := make(map[string]float64)
	for _, l := range o.of(family) {
		sums[key(l)] += o.ours[l.String()]
	}
	return sums
}

// expressions returns what Coder's dashboards and alerts ask, in words of ours: by a plain
// selector, summed or as a rate by pod, and joined with kube_pod_* or for a template's version.
func (o *observed) expressions(t *testing.T) []coderExpression {
	t.Helper()
	version := make(map[string]string)
	for _, l := range o.of("agentstatsd_workspace_info") {
		version[l.Get("username")+"/"+l.Get("workspace_name")] = labels.FromStrings("template_name", l.Get("template_name"), "template_version", l.Get("template_version")).String()
	}
	require.NotEmpty(t, version)
	traffic := o.sum("coderd_agentstats_rx_bytes", func(l labels.Labels) string {
		found := version[l.Get("username")+"/"+l.Get("workspace_name")]
		require.NotEmpty(t, found, "%s has a template", l)
		return found
	})
	all := func(family string) map[string]float64 {
		return o.sum(family, func(labels.Labels) string { return "{}" })
	}
	pod := func(v float64) map[string]float64 { return map[string]float64{`{pod="coder"}`: v} }
	const byVersion = " * on (username, workspace_name) group_left (template_name, template_version) group by (username, workspace_name, template_name, template_version) "
	return []coderExpression{
		{
			name: "plain: daemons", alert: "ProvisionerdReplicas",
			expr: "sum(coderd_provisionerd_num_daemons{" + ofCoderd + "}) < 1000", want: all("coderd_provisionerd_num_daemons"),
		},
		{
			name: "plain: replicas of coderd, of which agentstatsd is none", ofOthers: true,
			expr: "sum(up{" + ofCoderd + "})", want: map[string]float64{"{}": 2},
		},
		{
			name: "plain: connected agents",
			expr: "sum(coderd_agents_up{" + ofCoderd + "})", want: all("coderd_agents_up"),
		},
		{
			name: "by pod: builds that fail", alert: "CoderdWorkspaceBuildFailures",
			expr: "sum by (pod) (increase(coderd_workspace_builds_total{" + ofCoderd + ", status=`failed`}[10m])) > 2", want: pod(10),
		},
		{
			name: "by pod: websockets",
			expr: "sum by (pod) (coderd_api_concurrent_websockets{" + ofCoderd + "})", want: pod(all("coderd_api_concurrent_websockets")["{}"]),
		},
		{
			name: "by pod: scripts of agents", expr: "sum by (pod) (agent_scripts_executed_total{" + ofCoderd + "})",
			want: pod(all("agent_scripts_executed_total")["{}"]),
		},
		{
			name: "by pod: memory of coderd, not of agentstatsd", ofOthers: true,
			expr: "sum by (pod) (process_resident_memory_bytes{" + ofCoderd + "}) / on (pod) max by (pod) (kube_pod_container_resource_limits{" + ofCoderd + ", resource=`memory`})",
			want: map[string]float64{`{pod="coder-7b9d-x"}`: 0.1, `{pod="coder-7b9d-y"}`: 0.2},
		},
		{
			name: "join: traffic by the node of the workspace's pod",
			expr: "sum by (node) (" + coderdTraffic + " * on (username, workspace_name) group_left (node) " + workspacePods + ")",
			want: o.sum("coderd_agentstats_rx_bytes", func(l labels.Labels) string { return labels.FromStrings("node", nodeOf(l)).String() }),
		},
		{
			name: "join: traffic by the template's version, which coderd_agents_up has",
			expr: "sum by (template_name, template_version) (" + coderdTraffic + byVersion + "(coderd_agents_up{" + ofCoderd + "}))", want: traffic,
		},
		{
			name: "join: traffic by the template's version, of agentstatsd_workspace_info",
			expr: "sum by (template_name, template_version) (" + coderdTraffic + byVersion + "(agentstatsd_workspace_info))", want: traffic,
		},
	}
}

// With the rules that are shipped, families that agentstatsd serves in place of coderd answer
// what Coder's own dashboards and alerts ask. Without them nothing answers, and nobody is told.
// Debian's promtool and the engine of Prometheus 3 say so of series of the binary. With wider
// selectors they answer, too, but agentstatsd counts as a replica of coderd.
func TestCoderObservability(t *testing.T) {
	beside(t)
	s := newService(t, "--report-interval", "1s", "--prometheus-workspace-info", "--prometheus-extra-labels", "template_version")
	s.command = "demo"
	s.start(t)
	awaitFamilies(t, s, documentedFamilies(t), time.Minute, func(f *dto.MetricFamily) bool { return len(f.GetMetric()) > 0 })
	text, err := os.ReadFile("../examples/coder-observability/prometheus.yml")
	require.NoError(t, err)
	// What finds pods is of no module here; deploy looks at it.
	static := regexp.MustCompile(`kubernetes_sd_configs:\n *- role: pod\n( *namespaces: .*\n)?`).ReplaceAllString(string(text), "static_configs: [{targets: [a]}]\n")
	c, err := config.Load(static, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	jobs, err := c.GetScrapeConfigs()
	require.NoError(t, err)
	at := slices.IndexFunc(jobs, func(c *config.ScrapeConfig) bool { return c.JobName == "agentstatsd" })

	rules := jobs[at].MetricRelabelConfigs

	t.Run("relabelled", func(t *testing.T) {
		o := observe(t, s, "stats", "agentstatsd-0", rules)
		o.run(t, o.expressions(t))
	})
	t.Run("as it comes", func(t *testing.T) {
		o := observe(t, s, "stats", "agentstatsd-0", nil)
		asked := o.expressions(t)
		for i := range asked {
			if !asked[i].ofOthers {
				asked[i].want = nil
			}
		}
		o.run(t, asked)
	})
	readme, err := os.ReadFile("../examples/coder-observability/README.md")
	require.NoError(t, err)
	t.Run("other selectors", func(t *testing.T) {
		const wider = "pod=~`(coder|agentstatsd).*`"
		require.Contains(t, string(readme), wider)
		o := observe(t, s, "coder", "agentstatsd-0", nil)
		asked := o.expressions(t)
		for i, a := range asked {
			asked[i].expr = strings.ReplaceAll(a.expr, "pod=~`coder.*`", wider)
			if v, ok := a.want[`{pod="coder"}`]; ok {
				asked[i].want = map[string]float64{`{pod="agentstatsd-0"}`: v}
			}
			if strings.HasPrefix(a.expr, "sum(up{") {
				asked[i].want = map[string]float64{"{}": 3} // which is why relabelling is better
			}
		}
		o.run(t, asked)
	})
	t.Run("documents", func(t *testing.T) {
		o := observe(t, s, "stats", "agentstatsd-0", rules)
		joined := o.expressions(t)
		asked := []coderExpression{{name: "metrics.md", expr: blocks(t, "metrics.md", "promql")[0], want: joined[len(joined)-1].want}}
		for i, want := range []map[string]float64{
			{`{namespace="coder", pod="coder"}`: o.sum("coderd_provisionerd_num_daemons", func(labels.Labels) string { return "" })[""]},
			{"{}": 2},
			nil,
		} {
			block := strings.Split(string(readme), "\n```promql\n")[i+1]
			block, _, _ = strings.Cut(block, "\n```")
			asked = append(asked, coderExpression{name: "README", expr: block, want: want})
		}
		require.Equal(t, len(asked)-1, strings.Count(string(readme), "\n```promql\n"))
		o.runEngine(t, asked)
	})
}

// evaluated is when the expressions are.
const evaluated = 15 * time.Minute

func (o *observed) run(t *testing.T, asked []coderExpression) {
	t.Helper()
	o.runPromtool(t, asked)
	o.runEngine(t, asked)
}

// runEngine evaluates the expressions as Prometheus 3 does.
func (o *observed) runEngine(t *testing.T, asked []coderExpression) {
	t.Helper()
	var script strings.Builder
	script.WriteString("load 1m\n")
	for i, l := range o.series {
		fmt.Fprintf(&script, "  %s %s\n", seriesText(l), o.values[i])
	}
	for _, a := range asked {
		fmt.Fprintf(&script, "\neval instant at %s %s\n", evaluated, oneLine(a.expr))
		for series, value := range a.want {
			fmt.Fprintf(&script, "  %s %v\n", series, value)
		}
	}
	promqltest.RunTest(t, script.String(), promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery))
}

// runPromtool has Debian's promtool evaluate the expressions, and the alerts of some of them.
func (o *observed) runPromtool(t *testing.T, asked []coderExpression) {
	t.Helper()
	type object = map[string]any
	var input, exprs, alerts, rules []object
	for i, l := range o.series {
		input = append(input, object{"series": seriesText(l), "values": o.values[i]})
	}
	for _, a := range asked {
		samples := []object{}
		fired := []object{}
		for _, series := range slices.Sorted(maps.Keys(a.want)) {
			samples = append(samples, object{"labels": series, "value": a.want[series]})
			fired = append(fired, object{"exp_labels": pairs(series)})
		}
		exprs = append(exprs, object{"expr": a.expr, "eval_time": "15m", "exp_samples": samples})
		if a.alert != "" {
			rules = append(rules, object{"alert": a.alert, "expr": a.expr})
			alerts = append(alerts, object{"alertname": a.alert, "eval_time": "15m", "exp_alerts": fired})
		}
	}
	dir := t.TempDir()
	for name, content := range map[string]object{
		"rules.yml": {"groups": []object{{"name": "coder", "rules": rules}}},
		"test.yml": {"rule_files": []string{"rules.yml"}, "evaluation_interval": "1m", "tests": []object{
			{"interval": "1m", "input_series": input, "promql_expr_test": exprs, "alert_rule_test": alerts},
		}},
	} {
		text, err := yaml.Marshal(content)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	out, err := exec.Command(debian(t, "promtool"), "test", "rules", filepath.Join(dir, "test.yml")).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// pairs returns the labels of a series without a name.
func pairs(series string) map[string]string {
	out := make(map[string]string)
	for pair := range strings.SplitSeq(strings.Trim(series, "{}"), ", ") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			out[name] = strings.Trim(value, `"`)
		}
	}
	return out
}

// oneLine returns an expression without its comments and in one line.
func oneLine(expr string) string {
	comment := regexp.MustCompile(`(?m)^#.*$`)
	return strings.Join(strings.Fields(comment.ReplaceAllString(expr, "")), " ")
}

// seriesText is a series as unit tests of rules have it.
func seriesText(l labels.Labels) string {
	name := l.Get(model.MetricNameLabel)
	return cmp.Or(name, "{}") + labels.NewBuilder(l).Del(model.MetricNameLabel).Labels().String()
}
