package integration

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/documented"
)

// family is a row of families.tsv, Coder's documented table.
type family struct {
	name, typ string
	labels    []string
	buckets   []float64
	native    bool
	origin    string
}

// documentedFamilies reads the table.
func documentedFamilies(t *testing.T) map[string]family {
	t.Helper()
	families := make(map[string]family)
	for _, row := range documented.Families() {
		d := family{name: row.Name, typ: row.Type, labels: row.Labels, native: row.Native != "", origin: row.Origin}
		for _, bound := range row.Buckets {
			f, err := strconv.ParseFloat(bound, 64)
			require.NoError(t, err)
			d.buckets = append(d.buckets, f)
		}
		families[d.name] = d
	}
	return families
}

// newestLabels reads the labels that the newest Coder's families have.
func newestLabels(t *testing.T) map[string][]string {
	t.Helper()
	table, err := os.ReadFile(filepath.Join("..", "metrics", "testdata", "newest.tsv"))
	require.NoError(t, err)
	labels := make(map[string][]string)
	for line := range strings.Lines(string(table)) {
		if column := strings.Split(strings.TrimSuffix(line, "\n"), "\t"); !strings.HasPrefix(line, "#") {
			labels[column[0]] = strings.Split(column[2], ",")
			// Simulated under the name before, too, with the labels of today.
			old := strings.Replace(column[0], "coder_ai_gateway_", "coder_aibridged_", 1)
			labels[old] = strings.Split(column[2], ",")
		}
	}
	require.Greater(t, len(labels), len(documented.Families()))
	return labels
}

// subset returns true if all has every one of part.
func subset(all, part []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool { return !slices.Contains(all, s) })
}

// gather returns the families of a scrape in protobuf that have samples.
func gather(t *testing.T, s *service) map[string]*dto.MetricFamily {
	t.Helper()
	_, body := s.scrape(t, "/metrics", "Accept", acceptProtobuf)
	decoder := expfmt.NewDecoder(bytes.NewReader(body), expfmt.NewFormat(expfmt.TypeProtoDelim))
	families := make(map[string]*dto.MetricFamily)
	for {
		var f dto.MetricFamily
		err := decoder.Decode(&f)
		if errors.Is(err, io.EOF) {
			return families
		}
		require.NoError(t, err)
		require.NotContains(t, families, f.GetName(), "a family stands twice")
		families[f.GetName()] = &f
	}
}

// startDemo starts `agentstatsd demo`.
func startDemo(t *testing.T) *service {
	t.Helper()
	s := newService(t)
	s.command = "demo"
	s.start(t)
	return s
}

// TestDemoServesAllFamilies finds every documented family alive in a scrape of
// the demo, as it is documented, and native histograms in a Prometheus that
// takes them.
func TestDemoServesAllFamilies(t *testing.T) {
	beside(t)
	want, newest := documentedFamilies(t), newestLabels(t)
	s := startDemo(t)
	p := startPrometheus(t, s.httpAddr,
		job{name: "native", settings: []string{"scrape_native_histograms: true"}},
		job{name: "classic", settings: []string{"scrape_native_histograms: false"}})

	found := awaitFamilies(t, s, want, time.Minute, func(f *dto.MetricFamily) bool { return len(f.GetMetric()) > 0 })
	for name, d := range want {
		f := found[name]
		require.Equal(t, d.typ, strings.ToLower(f.GetType().String()), name)
		labels := make(map[string]bool)
		for _, m := range f.GetMetric() {
			requireBuckets(t, d, m)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		switch d.origin {
		case "runtime":
		case "coderd-event", "coderd-snapshot":
			// What coderd pushes may lack one: a label without a value is none.
			// The newest Coder has other labels than the table documents.
			got := slices.Sorted(maps.Keys(labels))
			if !subset(newest[name], got) {
				require.Subset(t, d.labels, got, name)
			}
		default:
			require.Equal(t, d.labels, slices.Sorted(maps.Keys(labels)), name)
		}
	}
	// What happens now and then has no observation in the first minute for sure.
	awaitFamilies(t, s, want, 3*time.Minute, alive)
	p.awaitScrapes(t, 2, 3)
	for name, d := range want {
		if d.native {
			requireNative(t, p, name)
		}
	}
	took, err := s.stop(syscall.SIGINT)
	require.NoError(t, err)
	require.Less(t, took, 5*time.Second)
}

// awaitFamilies scrapes until every wanted family is as it should be, and returns
// that scrape.
func awaitFamilies(t *testing.T, s *service, want map[string]family, timeout time.Duration, good func(*dto.MetricFamily) bool) map[string]*dto.MetricFamily {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		found := gather(t, s)
		missing := slices.DeleteFunc(slices.Sorted(maps.Keys(want)), func(name string) bool { return good(found[name]) })
		if len(missing) == 0 {
			return found
		}
		require.True(t, time.Now().Before(deadline), "%d families are missing after %s: %v", len(missing), timeout, missing)
		time.Sleep(200 * time.Millisecond)
	}
}

// alive reports whether the family has a sample, and a histogram an observation.
func alive(f *dto.MetricFamily) bool {
	return slices.ContainsFunc(f.GetMetric(), func(m *dto.Metric) bool {
		return m.GetHistogram() == nil || m.GetHistogram().GetSampleCount() > 0
	})
}

// requireBuckets compares one histogram with the table.
func requireBuckets(t *testing.T, d family, m *dto.Metric) {
	t.Helper()
	if len(d.buckets) == 0 {
		return
	}
	var bounds []float64
	for _, b := range m.GetHistogram().GetBucket() {
		if bound := b.GetUpperBound(); bound < 1e300 {
			bounds = append(bounds, bound)
		}
	}
	require.Equal(t, d.buckets, bounds, d.name)
	require.Equal(t, d.native, m.GetHistogram().Schema != nil, "%s: native histogram", d.name)
}

// requireNative finds the family as native histograms in one job and as classic
// ones in the other, and quantiles of it in both.
func requireNative(t *testing.T, p *prometheus, name string) {
	t.Helper()
	now := time.Now()
	native := p.query(t, name+`{job="native"}`, now)
	require.NotEmpty(t, native, name)
	for _, s := range native {
		require.NotNil(t, s.H, "%s arrives as a native histogram", s.Metric)
	}
	require.Empty(t, p.query(t, name+`{job="classic"}`, now), name)
	require.NotEmpty(t, p.query(t, name+`_bucket{job="classic"}`, now), name)
	for expr, v := range map[string]promql.Vector{
		"native":  p.query(t, `histogram_quantile(0.5, sum(`+name+`{job="native"}))`, now),
		"classic": p.query(t, `histogram_quantile(0.5, sum by (le) (`+name+`_bucket{job="classic"}))`, now),
	} {
		require.Len(t, v, 1, "%s %s", name, expr)
		require.Positive(t, v[0].F, "%s %s", name, expr)
	}
}
