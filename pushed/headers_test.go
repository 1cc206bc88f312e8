package pushed

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
)

// Each documented family of coderd is served once, sorted among others: as a header until
// it is pushed.
func TestHeaders(t *testing.T) {
	f := open(t, new(memory), Options{})
	compare := func(a, b *metrics.Rendered) int { return strings.Compare(a.Name, b.Name) }
	text := func() (names []string, text string) {
		families, _ := f.WithHeaders().Served()
		require.True(t, slices.IsSortedFunc(families, compare))
		for _, r := range families {
			names, text = append(names, r.Name), text+string(r.Text)
		}
		return names, text
	}
	var documented []string
	for _, d := range metrics.Catalogue() {
		if d.Owner == metrics.OwnerCoderd {
			documented = append(documented, d.Name)
		}
	}
	names, before := text()
	require.Equal(t, documented, names)
	const header = "# HELP coderd_api_concurrent_requests The number of concurrent API requests.\n# TYPE coderd_api_concurrent_requests gauge\n"
	require.Contains(t, before, header+"# HELP")

	pushText(t, f, start, 1, 1, "# TYPE coderd_api_concurrent_requests gauge\ncoderd_api_concurrent_requests{method=\"GET\"} 2\n# TYPE aa gauge\naa 1\n# TYPE zz gauge\nzz 1\n")
	names, after := text()
	require.Equal(t, append(append([]string{"aa"}, documented...), "zz"), names)
	require.Contains(t, after, header+"coderd_api_concurrent_requests{method=\"GET\"} 2\n# HELP")
}
