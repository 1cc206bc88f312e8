package metrics

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// table reads the rows of a documented table, by their first field.
func table(t *testing.T, file string) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	rows := make(map[string][]string)
	for line := range strings.Lines(string(data)) {
		if fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t"); !strings.HasPrefix(line, "#") {
			rows[fields[0]] = fields
		}
	}
	return rows
}

func list(field string) []string {
	if field == "-" {
		return nil
	}
	return strings.Split(field, ",")
}

func TestCatalogueIsTheDocumentedTable(t *testing.T) {
	families, policy := table(t, "testdata/families.tsv"), table(t, "testdata/policy.tsv")
	require.Len(t, families, 97)
	require.Len(t, policy, 97)
	origins := make(map[string]int)
	for _, f := range Catalogue() {
		row, rules := families[f.Name], policy[f.Name]
		require.NotNil(t, row, f.Name)
		origins[row[6]]++
		require.Equal(t, row[1], f.Type.String(), f.Name)
		require.Equal(t, list(row[2]), f.Labels, f.Name)
		require.Equal(t, row[3], f.Help, f.Name)
		var buckets []float64
		for _, b := range list(row[4]) {
			v, err := strconv.ParseFloat(b, 64)
			require.NoError(t, err)
			buckets = append(buckets, v)
		}
		require.Equal(t, buckets, f.Buckets, f.Name)
		require.Equal(t, rules[1], string(f.Owner), f.Name)
		require.Equal(t, strings.TrimPrefix(rules[3], "-"), string(f.Group), f.Name)

		got, ok := Documented(f.Name)
		require.True(t, ok)
		require.Equal(t, f, *got)
	}
	require.Equal(t, map[string]int{"agent-stats": 8, "agent-forwarded": 3, "metadata-batcher": 7}, origins)
	require.True(t, slices.IsSortedFunc(Catalogue(), func(f, g Family) int { return strings.Compare(f.Name, g.Name) }))
	_, ok := Documented("coderd_agentstats")
	require.False(t, ok)
}

// The registry has all documented families of the client library; those of the
// scrape handler come with it.
func TestRegistryHasTheDocumentedRuntimeFamilies(t *testing.T) {
	families, err := NewRegistry().Gather()
	require.NoError(t, err)
	got := make(map[string]string)
	for _, f := range families {
		got[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	for name, row := range table(t, "testdata/families.tsv") {
		if row[6] == "runtime" && !strings.HasPrefix(name, "promhttp_") {
			require.Equal(t, row[1], got[name], name)
		}
	}
}
