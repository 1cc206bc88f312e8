package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/documented"
)

// quickstart is the document in docs.
const quickstart = "quickstart-coder.md"

// Kubernetes takes the quickstart's Deployments, claim and Services, with no field that it
// would drop.
func TestQuickstartManifests(t *testing.T) {
	beside(t)
	conform := buildKubeconform(t)
	checked := 0
	for _, block := range blocks(t, quickstart, "yaml") {
		if !strings.Contains(block, "\nkind: Deployment\n") {
			continue
		}
		checked++
		out, err := conform.check([]byte(block))
		require.NoError(t, err, out)
		out, err = conform.check([]byte(strings.Replace(block, "  replicas:", "  misspelt:", 1)))
		require.Error(t, err, out)
	}
	require.Equal(t, 1, checked)
}

// A query within a text, and a name of a metric of the service in a table.
var (
	inlineQuery = regexp.MustCompile("`((?:sum|rate|increase|max|min|avg|count|max_over_time|histogram_quantile|absent|topk)(?: |\\().*?)`")
	ownMetric   = regexp.MustCompile("(?m)^\\| `((?:agentstatsd|grpc_server)_[a-z_]+)` \\|")
)

// The queries of all documents are those of Prometheus, and name documented families.
func TestDocumentedQueries(t *testing.T) {
	known := map[string]bool{"agentstatsd_workspace_info": true} // which an option adds
	for _, f := range documented.Families() {
		known[f.Name] = true
	}
	metrics, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	for _, m := range ownMetric.FindAllStringSubmatch(string(metrics), -1) {
		known[m[1]] = true
	}
	pages, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	checked := 0
	for _, page := range append(pages, "../README.md", "../SECURITY.md", "../deploy/kubernetes/README.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		var queries []string
		for _, rest := range strings.Split(string(text), "\n```promql\n")[1:] {
			block, _, _ := strings.Cut(rest, "\n```")
			queries = append(queries, strings.Split(block, "\n\n")...)
		}
		for _, m := range inlineQuery.FindAllStringSubmatch(string(text), -1) {
			if !strings.HasSuffix(m[1], "()") { // the name of a function
				queries = append(queries, m[1])
			}
		}
		for _, query := range queries {
			checked++
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
			require.NoError(t, err, "%s: %s", page, query)
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				if s, ok := n.(*parser.VectorSelector); ok && s.Name != "" {
					require.True(t, known[s.Name], "%s: %s", page, s.Name)
				}
				return nil
			})
		}
	}
	require.Greater(t, checked, 10)
}
