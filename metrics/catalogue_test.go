package metrics

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
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

// The tables are the contract; the catalogue has no choice but to equal them.
func TestCatalogueIsTheDocumentedTable(t *testing.T) {
	families, policy := table(t, "testdata/families.tsv"), table(t, "testdata/policy.tsv")
	require.Len(t, families, 97)
	require.Len(t, policy, 97)
	require.Len(t, Catalogue(), 97)
	require.True(t, slices.IsSortedFunc(Catalogue(), func(f, g Family) int { return strings.Compare(f.Name, g.Name) }))
	for name, row := range families {
		got, ok := Documented(name)
		require.True(t, ok, name)
		require.Equal(t, row[1], got.Type.String(), name)
		want := Family{Name: name, Type: got.Type, Labels: list(row[2]), Help: row[3], Source: got.Source}
		for _, b := range list(row[4]) {
			v, err := strconv.ParseFloat(b, 64)
			require.NoError(t, err)
			want.Buckets = append(want.Buckets, v)
		}
		if row[5] != "-" {
			want.Native = native(t, row[5])
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

func TestMergeOf(t *testing.T) {
	for _, c := range []struct {
		name string
		t    Type
		want Merge
	}{
		{"coderd_workspace_creation_total", Counter, MergeMax},
		{"coderd_workspace_latest_build_status", Gauge, MergeSticky},
		{"coderd_api_concurrent_requests", Gauge, MergeSum},
		{"coderd_oauth2_external_requests_rate_limit_used", Gauge, MergeNewest},
		{"coderd_api_request_latencies_seconds", Histogram, MergeSum},
		{"coderd_workspace_creation_total", Gauge, MergeSticky}, // not as documented
		{"coderd_workspace_latest_build_status", Counter, MergeSum},
		{"coderd_agents_up", Gauge, MergeSticky}, // not coderd's
		{"coderd_newer", Counter, MergeSum},
		{"coderd_newer", Histogram, MergeSum},
		{"coderd_newer", Summary, MergeSum},
		{"coderd_newer", Gauge, MergeSticky},
		{"coderd_newer", Untyped, MergeSticky},
	} {
		require.Equal(t, c.want, MergeOf(c.name, c.t), "%s %s", c.t, c.name)
	}
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
	opts := MustDocumented("coderd_workspace_creation_duration_seconds").HistogramOpts()
	require.EqualValues(t, 100, opts.NativeHistogramMaxBucketNumber)
	require.Equal(t, time.Hour, opts.NativeHistogramMinResetDuration)
}

// A scrape of a new registry has all documented runtime families: those of the
// client library, and those that come with the scrape handler.
func TestScrapeHasTheDocumentedRuntimeFamilies(t *testing.T) {
	body := get(t, Handler(NewRegistry(), HandlerOptions{}), "Accept", askText).Body.Bytes()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	got, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	require.NoError(t, err)
	var documented int
	for name, row := range table(t, "testdata/families.tsv") {
		if row[6] != "runtime" {
			continue
		}
		documented++
		f := got[name]
		require.NotNil(t, f, name)
		require.Equal(t, row[1], strings.ToLower(f.GetType().String()), name)
		require.NotEmpty(t, f.Metric, name)
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName())
			}
			require.Equal(t, list(row[2]), labels, name)
		}
	}
	require.Equal(t, 36, documented)
}
