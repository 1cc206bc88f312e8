package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/stretchr/testify/require"
	yamlv3 "go.yaml.in/yaml/v3" // relabel.Config knows its keys in YAML
	"sigs.k8s.io/yaml"

	"github.com/coder/agentstatsd/deploy/helm"
)

const observability = "../examples/coder-observability/"

// plainJob is what the tests read of a job of the example without an operator.
type plainJob struct {
	JobName              string            `yaml:"job_name"`
	MetricRelabelConfigs []*relabel.Config `yaml:"metric_relabel_configs"`
}

// plainConfig returns the jobs of the example without an operator.
func plainConfig(t *testing.T) map[string]plainJob {
	t.Helper()
	text, err := os.ReadFile(observability + "prometheus.yml")
	require.NoError(t, err)
	var file struct {
		ScrapeConfigs []plainJob `yaml:"scrape_configs"`
	}
	require.NoError(t, yamlv3.Unmarshal(text, &file))
	out := make(map[string]plainJob)
	for _, job := range file.ScrapeConfigs {
		for _, c := range job.MetricRelabelConfigs {
			require.NoError(t, c.Validate(model.UTF8Validation))
		}
		out[job.JobName] = job
	}
	require.Len(t, out, 2)
	return out
}

// Debian's promtool takes the example, but for Kubernetes, which Debian builds it without; also
// with the rule for who selects by job.
func TestCoderObservabilityConfiguration(t *testing.T) {
	found, err := filepath.Glob("../bin/debian/usr/bin/promtool")
	require.NoError(t, err)
	require.Len(t, found, 1, "make servers downloads it")
	text, err := os.ReadFile(observability + "prometheus.yml")
	require.NoError(t, err)
	whole := strings.ReplaceAll(string(text), "      # - source", "      - source")
	whole = strings.ReplaceAll(whole, "      #   ", "        ")
	require.Contains(t, whole, "\n      - source_labels: [__name__]\n        regex: coderd?_.+|agent_.+\n        target_label: job\n")
	pods := regexp.MustCompile(`    kubernetes_sd_configs:\n      - role: pod\n(        namespaces: .*\n)?`)
	require.Len(t, pods.FindAllString(whole, -1), 2)
	for _, text := range []string{string(text), whole} {
		text = pods.ReplaceAllString(text, "    static_configs: [{targets: [\"localhost:2112\"]}]\n")
		file := filepath.Join(t.TempDir(), "prometheus.yml")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		out, err := exec.Command(found[0], "check", "config", file).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

// The chart takes the values, and whatever prometheus-operator is told has the rules of the
// plain configuration.
func TestCoderObservabilityValues(t *testing.T) {
	text, err := os.ReadFile(observability + "values-agentstatsd.yaml")
	require.NoError(t, err)
	want := plainConfig(t)["agentstatsd"].MetricRelabelConfigs
	for _, kind := range []string{"ServiceMonitor", "PodMonitor", "ScrapeConfig"} {
		var values map[string]any
		require.NoError(t, yaml.UnmarshalStrict(text, &values))
		values["metrics"].(map[string]any)["monitor"] = kind
		values["tls"] = map[string]any{"allowPlaintext": true} // beside values of the reader's own
		rendered, err := helm.Render("helm/agentstatsd", "agentstatsd", "coder", values, helm.Cluster{}, true)
		require.NoError(t, err)
		require.Contains(t, rendered.YAML(), "workspace_info: true")
		type rules []struct {
			SourceLabels                    []string
			Regex, TargetLabel, Replacement string
		}
		var got rules
		for _, text := range rendered.Manifests {
			var m struct {
				Kind string
				Spec struct {
					Endpoints, PodMetricsEndpoints []struct{ MetricRelabelings rules }
					MetricRelabelings              rules
				}
			}
			require.NoError(t, yaml.Unmarshal([]byte(text), &m))
			if m.Kind != kind {
				continue
			}
			got = m.Spec.MetricRelabelings
			for _, e := range append(m.Spec.Endpoints, m.Spec.PodMetricsEndpoints...) {
				got = e.MetricRelabelings
			}
		}
		require.Len(t, got, len(want), kind)
		for i, c := range want {
			require.Equal(t, fmt.Sprint(c.SourceLabels, " ", c.Regex.String(), " ", c.TargetLabel, " ", c.Replacement),
				fmt.Sprint(strings.Join(got[i].SourceLabels, ", "), " ", got[i].Regex, " ", got[i].TargetLabel, " ", got[i].Replacement), kind)
		}
	}
}
