package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grafana/alloy/syntax/ast"
	"github.com/grafana/alloy/syntax/parser"
	"github.com/grafana/alloy/syntax/printer"
	"github.com/grafana/alloy/syntax/vm"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// The components that the examples have, with arguments as Alloy's reference names them
// (https://grafana.com/docs/alloy/latest/reference/components). Others are refused. A
// receiver is a text here.
type (
	alloyRule struct {
		SourceLabels []string `alloy:"source_labels,attr,optional"`
		Separator    string   `alloy:"separator,attr,optional"`
		Regex        string   `alloy:"regex,attr,optional"`
		TargetLabel  string   `alloy:"target_label,attr,optional"`
		Replacement  string   `alloy:"replacement,attr,optional"`
		Action       string   `alloy:"action,attr,optional"`
	}
	alloyDiscovery struct {
		Role      string `alloy:"role,attr"`
		Selectors []struct {
			Role  string `alloy:"role,attr"`
			Label string `alloy:"label,attr,optional"`
		} `alloy:"selectors,block,optional"`
	}
	alloyTargets struct {
		Targets []map[string]string `alloy:"targets,attr"`
		Rules   []alloyRule         `alloy:"rule,block,optional"`
	}
	alloyScrape struct {
		Targets        []map[string]string `alloy:"targets,attr"`
		ForwardTo      []string            `alloy:"forward_to,attr"`
		JobName        string              `alloy:"job_name,attr,optional"`
		ScrapeInterval time.Duration       `alloy:"scrape_interval,attr,optional"`
		ScrapeTimeout  time.Duration       `alloy:"scrape_timeout,attr,optional"`
		Protocols      []string            `alloy:"scrape_protocols,attr,optional"`
		Native         bool                `alloy:"scrape_native_histograms,attr,optional"`
		Classic        bool                `alloy:"scrape_classic_histograms,attr,optional"`
		Clustering     *struct {
			Enabled bool `alloy:"enabled,attr"`
		} `alloy:"clustering,block,optional"`
	}
	alloyRelabel struct {
		ForwardTo []string    `alloy:"forward_to,attr"`
		Rules     []alloyRule `alloy:"rule,block,optional"`
	}
	alloyWrite struct {
		Endpoint []struct {
			URL       string `alloy:"url,attr"`
			Native    bool   `alloy:"send_native_histograms,attr,optional"`
			BasicAuth *struct {
				Username     string `alloy:"username,attr,optional"`
				PasswordFile string `alloy:"password_file,attr,optional"`
			} `alloy:"basic_auth,block,optional"`
		} `alloy:"endpoint,block,optional"`
	}
)

func newComponent(kind string) any {
	switch kind {
	case "discovery.kubernetes":
		return new(alloyDiscovery)
	case "discovery.relabel":
		return new(alloyTargets)
	case "prometheus.scrape":
		return new(alloyScrape)
	case "prometheus.relabel":
		return new(alloyRelabel)
	case "prometheus.remote_write":
		return new(alloyWrite)
	}
	return nil
}

// evaluate returns the components of an Alloy configuration by their ids. What they refer to
// is one of them, or one of known.
func evaluate(t *testing.T, name, text string, known ...string) map[string]any {
	t.Helper()
	file, err := parser.ParseFile(name, []byte(text))
	require.NoError(t, err)
	var formatted bytes.Buffer
	require.NoError(t, printer.Fprint(&formatted, file))
	spaces := strings.NewReplacer("\t", "  ") // within YAML
	require.Equal(t, strings.TrimSpace(spaces.Replace(text)), strings.TrimSpace(spaces.Replace(formatted.String())), "%s is formatted as by alloy fmt", name)

	exports := map[string]any{"sys": map[string]any{"env": func(name string) string { return "http://" + name }}}
	declare := func(id string) {
		part := strings.Split(id, ".")
		require.Len(t, part, 3)
		kinds, _ := exports[part[0]].(map[string]any)
		if kinds == nil {
			kinds = make(map[string]any)
			exports[part[0]] = kinds
		}
		labels, _ := kinds[part[1]].(map[string]any)
		if labels == nil {
			labels = make(map[string]any)
			kinds[part[1]] = labels
		}
		targets := []map[string]string{{"__address__": id}}
		labels[part[2]] = map[string]any{"receiver": id, "targets": targets, "output": targets}
	}
	for _, id := range known {
		declare(id)
	}
	var blocks []*ast.BlockStmt
	for _, statement := range file.Body {
		block, ok := statement.(*ast.BlockStmt)
		require.True(t, ok, "%s: only blocks stand by themselves", name)
		blocks = append(blocks, block)
		declare(strings.Join(block.Name, ".") + "." + block.Label)
	}
	components := make(map[string]any)
	for _, block := range blocks {
		id := strings.Join(block.Name, ".") + "." + block.Label
		into := newComponent(strings.Join(block.Name, "."))
		require.NotNil(t, into, "%s: %s is one of the components that the test knows", name, id)
		require.NoError(t, vm.New(block.Body).Evaluate(&vm.Scope{Variables: exports}, into), "%s: %s", name, id)
		require.NotContains(t, components, id)
		components[id] = into
	}
	return components
}

// relabelling returns rules as Prometheus has them: with its defaults, and checked.
func relabelling(t *testing.T, rules []alloyRule) (out []relabel.Config) {
	t.Helper()
	for _, r := range rules {
		c := relabel.DefaultRelabelConfig
		c.NameValidationScheme = model.UTF8Validation
		for _, name := range r.SourceLabels {
			c.SourceLabels = append(c.SourceLabels, model.LabelName(name))
		}
		if r.Separator != "" {
			c.Separator = r.Separator
		}
		if r.Regex != "" {
			c.Regex = relabel.MustNewRegexp(r.Regex)
		}
		c.TargetLabel = r.TargetLabel
		if r.Replacement != "" {
			c.Replacement = r.Replacement
		}
		if r.Action != "" {
			c.Action = relabel.Action(r.Action)
		}
		require.NoError(t, c.Validate(model.UTF8Validation))
		out = append(out, c)
	}
	return out
}

// Alloy's own parser takes the examples. What they scrape is written, native histograms too,
// with the classic buckets that dashboards ask for.
func TestAlloy(t *testing.T) {
	files, err := filepath.Glob("../examples/alloy/*.alloy")
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		components := evaluate(t, file, string(text))
		scrape := components["prometheus.scrape.agentstatsd"].(*alloyScrape)
		require.Equal(t, []string{"PrometheusProto", "PrometheusText0.0.4"}, scrape.Protocols)
		require.True(t, scrape.Native && scrape.Classic)
		require.Less(t, scrape.ScrapeTimeout, scrape.ScrapeInterval)
		require.Equal(t, []string{"prometheus.remote_write.default"}, scrape.ForwardTo)
		require.NotEmpty(t, scrape.Targets)
		for _, endpoint := range components["prometheus.remote_write.default"].(*alloyWrite).Endpoint {
			require.True(t, endpoint.Native)
			require.Equal(t, "http://REMOTE_WRITE_URL", endpoint.URL)
		}
		if targets, ok := components["discovery.relabel.agentstatsd"].(*alloyTargets); ok {
			relabelling(t, targets.Rules)
		}
	}
}

// The collector of coder-observability takes the components that are added to it: what they
// refer to is there or among them, and the rules are those of the plain configuration.
func TestCoderObservabilityBlocks(t *testing.T) {
	var values struct {
		Agent struct {
			ExtraBlocks string `json:"extraBlocks"`
		} `json:"grafana-agent"`
	}
	text, err := os.ReadFile("../examples/coder-observability/values-coder-observability.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(text, &values))
	components := evaluate(t, "extraBlocks", values.Agent.ExtraBlocks, "discovery.kubernetes.pods", "prometheus.remote_write.default")
	require.Len(t, components, 6)
	plain := plainConfig(t)
	for _, job := range []struct{ ours, plain string }{{"agentstatsd", "agentstatsd"}, {"coderd", "coder"}} {
		require.True(t, components["prometheus.scrape."+job.ours].(*alloyScrape).Clustering.Enabled, "the collector runs on each node")
		got := relabelling(t, components["prometheus.relabel."+job.ours].(*alloyRelabel).Rules)
		var want []relabel.Config
		for _, c := range plain[job.plain].MetricRelabelConfigs {
			want = append(want, *c)
		}
		if job.ours == "coderd" { // there up and scrape_* pass the rules
			want[0].Regex = relabel.MustNewRegexp("up|(go|process|promhttp|scrape)_.+")
		}
		require.Equal(t, fmt.Sprint(want), fmt.Sprint(got), job.ours)
		relabelling(t, components["discovery.relabel."+job.ours].(*alloyTargets).Rules)
	}
}
