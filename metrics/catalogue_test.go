package metrics

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/documented"
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

// The tables are the contract; the catalogue has no choice but to equal them.
func TestCatalogueIsTheDocumentedTable(t *testing.T) {
	families, policy := documented.Families(), table(t, "testdata/policy.tsv")
	require.Len(t, policy, len(families))
	require.Len(t, Catalogue(), len(families))
	require.True(t, slices.IsSortedFunc(Catalogue(), func(f, g Family) int { return strings.Compare(f.Name, g.Name) }))
	for _, row := range families {
		name := row.Name
		got, ok := Documented(name)
		require.True(t, ok, name)
		require.Equal(t, row.Type, got.Type.String(), name)
		want := Family{Name: name, Type: got.Type, Labels: row.Labels, Help: row.Help, Source: got.Source}
		for _, b := range row.Buckets {
			v, err := strconv.ParseFloat(b, 64)
			require.NoError(t, err)
			want.Buckets = append(want.Buckets, v)
		}
		if row.Native != "" {
			want.Native = native(t, row.Native)
		}
		rules := policy[name]
		require.Len(t, rules, 4, name)
		want.Owner = Owner(rules[1])
		want.Merge = Merge(strings.TrimPrefix(rules[2], "-"))
		want.Group = Grouping(strings.TrimPrefix(rules[3], "-"))
		require.Equal(t, want, *got)
		require.Regexp(t, `^\S.*\.$`, got.Source, name)
	}
	for _, name := range []string{"", "coderd_agentstats", "zzz"} {
		_, ok := Documented(name)
		require.False(t, ok, name)
	}
}

// native reads factor=1.1;max_buckets=100;min_reset=1h.
func native(t *testing.T, field string) *NativeHistogram {
	t.Helper()
	var minReset string
	n := new(NativeHistogram)
	_, err := fmt.Sscanf(strings.ReplaceAll(field, ";", " "), "factor=%g max_buckets=%d min_reset=%s", &n.BucketFactor, &n.MaxBuckets, &minReset)
	require.NoError(t, err)
	n.MinReset, err = time.ParseDuration(minReset)
	require.NoError(t, err)
	return n
}

// The catalogue has a policy for each family that the newest Coder documents.
func TestNewestFamilies(t *testing.T) {
	newest := table(t, "testdata/newest.tsv")
	require.Len(t, newest, 235)
	require.True(t, slices.IsSortedFunc(newerFamilies, func(f, g NewerFamily) int { return strings.Compare(f.Name, g.Name) }))
	for _, f := range newerFamilies {
		require.Contains(t, newest, f.Name)
	}
	owners := map[string]Owner{"service": OwnerService, "agents": OwnerAgents, "forwarded": OwnerAgents}
	for name, row := range newest {
		owner, typ := ownerOf(name)
		require.Equal(t, row[1], typ.String(), name)
		if want, ok := owners[row[3]]; ok {
			require.Equal(t, want, owner, name)
			require.Equal(t, ReasonOwnedByService, CheckPushedName(name), name)
			continue
		}
		require.Equal(t, OwnerCoderd, owner, name)
		require.Empty(t, CheckPushedName(name), name)
		how, known := MergeOf(name, typ)
		require.Equal(t, Merge(row[3]), how, name)
		require.True(t, known, name)
		if f, ok := Newer(name); ok {
			require.Equal(t, list(row[2]), f.Labels, name)
		}
	}
}

func TestMergeOf(t *testing.T) {
	for _, c := range []struct {
		name  string
		t     Type
		want  Merge
		known bool
	}{
		{"coderd_workspace_creation_total", Counter, MergeMax, true},
		{"coderd_workspace_latest_build_status", Gauge, MergeSticky, true},
		{"coderd_api_concurrent_requests", Gauge, MergeSum, true},
		{"coderd_oauth2_external_requests_rate_limit_used", Gauge, MergeNewest, true},
		{"coderd_api_request_latencies_seconds", Histogram, MergeSum, true},
		{"coderd_prebuilt_workspaces_created_total", Counter, MergeMax, true},
		{"coder_pubsub_connected", Gauge, MergeMin, true},
		{"coderd_build_info", Gauge, MergeMax, true},
		{"coderd_workspace_creation_total", Gauge, MergeStickySeries, false}, // not as documented
		{"coderd_build_info", Counter, MergeSum, false},
		{"coderd_workspace_latest_build_status", Counter, MergeSum, false},
		{"coderd_agents_up", Gauge, MergeStickySeries, false}, // not coderd's
		{"coderd_unheard_of", Counter, MergeSum, false},
		{"coderd_unheard_of", Histogram, MergeSum, false},
		{"coderd_unheard_of", Summary, MergeSum, false},
		{"coderd_unheard_of", Gauge, MergeStickySeries, false},
		{"coderd_unheard_of", Untyped, MergeStickySeries, false},
	} {
		how, known := MergeOf(c.name, c.t)
		require.Equal(t, c.want, how, "%s %s", c.t, c.name)
		require.Equal(t, c.known, known, "%s %s", c.t, c.name)
	}
}

func TestParseMerges(t *testing.T) {
	got, err := ParseMerges([]string{"a=sum", "coderd_build_info=min", "b=max", "c=sticky", "d=newest", "a=sum"})
	require.NoError(t, err)
	require.Equal(t, map[string]Merge{
		"a": MergeSum, "coderd_build_info": MergeMin, "b": MergeMax, "c": MergeSticky, "d": MergeNewest,
	}, got)
	for setting, want := range map[string]string{
		"a":                    `"a": want name=sum, max, min, sticky or newest`,
		"a=":                   `want sum, max, min, sticky or newest, got ""`,
		"a=Sum":                `got "Sum"`,
		"a=sticky by series":   `got "sticky by series"`,
		"=sum":                 "invalid_name",
		"go_goroutines=sum":    "owned_by_service",
		"coderd_agents_up=max": "owned_by_service",
	} {
		_, err := ParseMerges([]string{setting})
		require.ErrorContains(t, err, want)
	}
	_, err = ParseMerges([]string{"a=sum", "a=max"})
	require.EqualError(t, err, "a is both sum and max")
}

// A histogram made with a family's options has its buckets, and is native where
// that is documented.
func TestHistogramOpts(t *testing.T) {
	for _, f := range Catalogue() {
		if f.Type != Histogram {
			continue
		}
		h := prometheus.NewHistogram(f.HistogramOpts())
		h.Observe(3)
		var m dto.Metric
		require.NoError(t, h.Write(&m))
		require.Len(t, m.GetHistogram().GetBucket(), len(f.Buckets), f.Name)
		require.Equal(t, f.Native != nil, len(m.GetHistogram().GetPositiveSpan()) > 0, f.Name)
		require.Contains(t, h.Desc().String(), f.Help)
	}
	family, ok := Documented("coderd_workspace_creation_duration_seconds")
	require.True(t, ok)
	opts := family.HistogramOpts()
	require.EqualValues(t, 100, opts.NativeHistogramMaxBucketNumber)
	require.Equal(t, time.Hour, opts.NativeHistogramMinResetDuration)
}
