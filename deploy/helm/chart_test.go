package helm

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write what is generated: the golden files, deploy/kubernetes and the chart's files")

// valueFiles are the sets of values that tests render.
func valueFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/values/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

func readValues(t *testing.T, file string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var values map[string]any
	require.NoError(t, yaml.UnmarshalStrict(text, &values))
	return values
}

// tokens are the Secrets that a release of an earlier time has made, so that what is
// rendered is the same each time.
var tokens = map[string]map[string]string{
	"agentstatsd-coderd-token":   {"token": "Y29kZXJkLXRva2VuLW9mLWFuLWVhcmxpZXItdGltZS4uLi4u"},
	"agentstatsd-operator-token": {"token": "b3BlcmF0b3ItdG9rZW4tb2YtYW4tZWFybGllci10aW1lLi4u"},
}

// render returns what Helm makes of values, for a release agentstatsd in the namespace coder.
func renderValues(t *testing.T, values map[string]any) *Rendered {
	t.Helper()
	r, err := Render(Dir, "agentstatsd", "coder", values, Cluster{Secrets: tokens}, true)
	require.NoError(t, err)
	return r
}

// requireFile compares a file with what it should be, or writes it.
func requireFile(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
		return
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "run make generate")
}

// What is rendered changes only on purpose. Rules and dashboards, which are copies, are left
// out.
func TestGolden(t *testing.T) {
	for _, file := range valueFiles(t) {
		r := renderValues(t, readValues(t, file))
		var kept []string
		for _, m := range r.Manifests {
			if !strings.Contains(m, "\nkind: PrometheusRule\n") && !strings.Contains(m, "-dashboard-") {
				kept = append(kept, m)
			}
		}
		requireFile(t, filepath.Join("testdata", "golden", filepath.Base(file)), strings.Join(kept, "---\n"))
	}
}

// Helm's own lint has nothing to say.
func TestLint(t *testing.T) {
	for _, file := range valueFiles(t) {
		result := lint.RunAll(Dir, readValues(t, file), "coder")
		for _, m := range result.Messages {
			require.Contains(t, m.Error(), "icon is recommended", "%s: %v", file, m)
		}
		require.NotEmpty(t, result.Messages)
	}
}
