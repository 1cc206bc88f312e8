package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/documented"
)

// The queries of the quickstart are those of Prometheus, and name documented families.
func TestQuickstartQueries(t *testing.T) {
	page, err := os.ReadFile("../docs/quickstart-coder.md")
	require.NoError(t, err)
	known := make(map[string]bool)
	for _, f := range documented.Families() {
		known[f.Name] = true
	}
	blocks := regexp.MustCompile("(?ms)^```promql\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		for query := range strings.SplitSeq(block[1], "\n\n") {
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
