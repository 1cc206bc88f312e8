package integration

import (
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/documented"
)

// quickstart is the document in docs.
const quickstart = "quickstart-coder.md"

// Kubernetes takes the quickstart's Deployment, claim and Services, with no field that it
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
		out, err = conform.check([]byte(strings.Replace(block, "  replicas: 1", "  misspelt: 1", 1)))
		require.Error(t, err, out)
	}
	require.Equal(t, 1, checked)
}

// The queries of the quickstart are those of Prometheus, and name documented families.
func TestQuickstartQueries(t *testing.T) {
	known := make(map[string]bool)
	for _, f := range documented.Families() {
		known[f.Name] = true
	}
	for _, block := range blocks(t, quickstart, "promql") {
		for query := range strings.SplitSeq(block, "\n\n") {
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
			require.NoError(t, err, query)
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				if s, ok := n.(*parser.VectorSelector); ok && s.Name != "" {
					require.True(t, known[s.Name], s.Name)
				}
				return nil
			})
		}
	}
}
