package helm

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const kubernetesDir = "../kubernetes"

// ofRelease matches lines that only a release of Helm has: who manages it, of which version
// of the chart, and its namespace, which kubectl names.
var ofRelease = regexp.MustCompile(`(?m)^ +(helm\.sh/chart|app\.kubernetes\.io/(version|managed-by)): .*\n|^  namespace: coder\n`)

// The plain manifests are what the chart makes.
func TestPlainManifests(t *testing.T) {
	for file, kind := range map[string]string{"single": "", "replicated": "", "bridge": "", "servicemonitor": "ServiceMonitor"} {
		r := renderValues(t, readValues(t, filepath.Join(kubernetesDir, "values", file+".yaml")))
		var kept []string
		for _, m := range r.Manifests {
			if kind == "" || kindOf(t, m) == kind {
				kept = append(kept, ofRelease.ReplaceAllString(m, ""))
			}
		}
		text := "# Made of the chart with values/" + file + ".yaml, by make generate.\n" + strings.Join(kept, "---\n")
		require.NotContains(t, text, "Helm")
		require.NotContains(t, text, "kind: Secret\n", "nobody is to have a token that is public")
		require.Empty(t, invalid(t, text), file)
		requireFile(t, filepath.Join(kubernetesDir, file+".yaml"), text)
	}
	files, err := filepath.Glob(filepath.Join(kubernetesDir, "*.yaml"))
	require.NoError(t, err)
	require.Len(t, files, 4)
}
