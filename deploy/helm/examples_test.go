package helm

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	"sigs.k8s.io/yaml"
)

// root is the repository, from this directory.
const root = "../.."

// ourCommand matches a command of Helm with this chart in a document.
var ourCommand = regexp.MustCompile(`(?m)^helm upgrade --install (\S+) deploy/helm/agentstatsd (.*)$`)

// Each command of Helm that a document has makes what Kubernetes takes, and each example is
// part of one.
func TestDocumentedInstallations(t *testing.T) {
	used := make(map[string]bool)
	for _, document := range []string{"README.md", "docs/quickstart-coder.md", "deploy/kubernetes/README.md", "examples/kubernetes/README.md"} {
		text, err := os.ReadFile(filepath.Join(root, document))
		require.NoError(t, err)
		commands := ourCommand.FindAllStringSubmatch(string(text), -1)
		require.NotEmpty(t, commands, document)
		for _, command := range commands {
			values, namespace := make(map[string]any), ""
			words := strings.Fields(command[2])
			require.Zero(t, len(words)%2, command[0])
			for option := range slices.Chunk(words, 2) {
				switch option[0] {
				case "--namespace":
					namespace = option[1]
				case "-f":
					used[filepath.Base(option[1])] = true
					values = loader.MergeMaps(values, readValues(t, filepath.Join(root, option[1])))
				case "--set":
					require.NoError(t, strvals.ParseInto(option[1], values))
				default:
					require.Fail(t, "an option that is not known here", "%s: %s", document, option[0])
				}
			}
			r, err := Render(Dir, command[1], namespace, values, Cluster{}, true)
			require.NoError(t, err, "%s: %s", document, command[0])
			for _, m := range r.Manifests {
				require.Empty(t, invalid(t, m), "%s: %s", document, command[0])
			}
		}
	}
	examples, err := filepath.Glob(filepath.Join(root, "examples/kubernetes/*.yaml"))
	require.NoError(t, err)
	for _, file := range examples {
		switch name := filepath.Base(file); name {
		case "coder.yaml", "prometheus-adapter.yaml": // of other charts
		default:
			require.True(t, used[name], "no document uses %s", name)
		}
	}
}

// The adapter's rule asks for the metric by which the autoscaler goes.
func TestAdapterServesTheMetric(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "examples/kubernetes/prometheus-adapter.yaml"))
	require.NoError(t, err)
	var values struct {
		Rules struct {
			Custom []struct {
				SeriesQuery, MetricsQuery string
				Name                      struct{ As string }
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &values))
	require.Len(t, values.Rules.Custom, 1)
	rule := values.Rules.Custom[0]
	chart, err := loader.LoadDir(Dir)
	require.NoError(t, err)
	require.Equal(t, chart.Values["autoscaling"].(map[string]any)["metricName"], rule.Name.As)
	query := strings.NewReplacer("<<.GroupBy>>", "pod", "<<.Series>>", rule.Name.As, "<<.LabelMatchers>>", `namespace="coder",pod=~"a|b"`).Replace(rule.MetricsQuery)
	for _, q := range []string{query, rule.SeriesQuery} {
		_, err := parser.NewParser(parser.Options{}).ParseExpr(q)
		require.NoError(t, err, q)
		require.Contains(t, q, "agentstatsd_sessions")
	}
}
