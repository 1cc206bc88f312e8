package simulate_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/simulate"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func gather(t *testing.T, r *simulate.CoderdRegistry) map[string]*dto.MetricFamily {
	families, err := r.Gather()
	require.NoError(t, err)
	byName := map[string]*dto.MetricFamily{}
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// coderdFamilies are the documented families that coderd owns.
func coderdFamilies() []metrics.Family {
	return slices.DeleteFunc(metrics.Catalogue(), func(f metrics.Family) bool { return f.Owner != metrics.OwnerCoderd })
}

// newest returns the labels that the newest coderd has on a family, and others on
// one that it has not.
func newest(t *testing.T, name string, others []string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "metrics", "testdata", "newest.tsv"))
	require.NoError(t, err)
	// The older names of these have their labels.
	name = strings.Replace(name, "coder_aibridged_", "coder_ai_gateway_", 1)
	for line := range strings.Lines(string(data)) {
		if fields := strings.Split(line, "\t"); fields[0] == name {
			if fields[2] == "-" {
				return nil
			}
			return strings.Split(fields[2], ",")
		}
	}
	return others
}

func labelsOf(m *dto.Metric) (labels []string) {
	for _, l := range m.GetLabel() {
		labels = append(labels, l.GetName())
	}
	return labels
}

// After its first second an instance has all documented families, as documented, and
// those of Go and the process.
func TestCoderdRegistry(t *testing.T) {
	r := simulate.NewCoderdRegistry(1)
	r.Tick(noon)
	for range 600 {
		r.Tick(noon)
	}
	early := simulate.NewCoderdRegistry(2)
	early.Tick(noon)
	seen := gather(t, r)
	require.NotEmpty(t, coderdFamilies())
	for _, want := range coderdFamilies() {
		require.NotEmpty(t, gather(t, early)[want.Name].GetMetric(), want.Name)
		got := seen[want.Name]
		require.NotNil(t, got, want.Name)
		require.Equal(t, strings.ToLower(got.GetType().String()), strings.ToLower(want.Type.String()), want.Name)
		require.Equal(t, want.Help, got.GetHelp())
		for _, m := range got.GetMetric() {
			labels := labelsOf(m)
			require.Equal(t, newest(t, want.Name, want.Labels), labels, want.Name)
			if m.Histogram == nil {
				continue
			}
			var buckets []float64
			for _, b := range m.GetHistogram().GetBucket() {
				if !math.IsInf(b.GetUpperBound(), 1) {
					buckets = append(buckets, b.GetUpperBound())
				}
			}
			require.Equal(t, want.Buckets, buckets, want.Name)
			require.Equal(t, want.Native != nil, m.GetHistogram().Schema != nil, want.Name)
			if want.Native != nil {
				// The widest schema whose buckets grow by at most 10 %.
				require.EqualValues(t, 3, m.GetHistogram().GetSchema())
			}
		}
		delete(seen, want.Name)
	}
	for _, prefix := range []string{"coder_ai_gateway_", "coder_aibridged_"} {
		for name, f := range seen {
			if strings.HasPrefix(name, prefix) {
				require.NotEmpty(t, f.Metric, name)
				require.Equal(t, newest(t, name, nil), labelsOf(f.Metric[0]), name)
				delete(seen, name)
			}
		}
	}
	for name := range seen {
		require.True(t, strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_"), name)
		network := strings.HasPrefix(name, "process_network_") // which coderd may push
		require.Equal(t, network, metrics.CheckPushedName(name) == "", name)
	}
	require.Contains(t, seen, "go_goroutines")
	require.Contains(t, seen, "process_cpu_seconds_total")
}

// values are the samples of a family: of histograms their counts.
func values(f *dto.MetricFamily) map[string]float64 {
	all := map[string]float64{}
	for _, m := range f.GetMetric() {
		var key strings.Builder
		for _, l := range m.GetLabel() {
			key.WriteString(l.GetValue() + "/")
		}
		all[key.String()] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return all
}

func TestCoderdRegistryMoves(t *testing.T) {
	still := []string{"coderd_license_errors", "coderd_license_limit_users", "coderd_license_user_limit_enabled", "coderd_oauth2_external_requests_rate_limit", "coderd_provisionerd_num_daemons"}
	r := simulate.NewCoderdRegistry(1)
	r.Tick(noon)
	before, moved := gather(t, r), map[string]bool{}
	for i := range 40 * 60 {
		now := noon.Add(time.Duration(i) * 2 * time.Second)
		r.Tick(now)
		if i%60 != 0 {
			continue
		}
		after := gather(t, r)
		for _, f := range coderdFamilies() {
			was, is := values(before[f.Name]), values(after[f.Name])
			for key, value := range was {
				if is[key] != value {
					moved[f.Name] = true
				}
				if f.Type != metrics.Gauge {
					require.GreaterOrEqual(t, is[key], value, "%s %s", f.Name, key)
				}
			}
			for key, value := range is {
				require.False(t, value < 0 || math.IsNaN(value) || math.IsInf(value, 0), "%s %s", f.Name, key)
			}
		}
		sum := 0.0
		for _, n := range values(after["coderd_workspace_latest_build_status"]) {
			require.Positive(t, n)
			sum += n
		}
		require.Equal(t, 25.0, sum, "each workspace once")
		before = after
	}
	for _, f := range coderdFamilies() {
		require.Equal(t, !slices.Contains(still, f.Name), moved[f.Name], f.Name)
	}
}

// What instances read from their database is the same on all, whenever they
// started.
func TestCoderdRegistriesShareADatabase(t *testing.T) {
	a, b := simulate.NewCoderdRegistry(1), simulate.NewCoderdRegistry(2)
	for i := range 100 {
		a.Tick(noon.Add(time.Duration(i) * time.Minute))
	}
	now := noon.Add(100 * time.Minute)
	a.Tick(now)
	b.Tick(now)
	as, bs := gather(t, a), gather(t, b)
	shared := 0
	for _, f := range coderdFamilies() {
		switch f.Merge {
		case metrics.MergeSticky, metrics.MergeMax:
			shared++
			require.Equal(t, values(as[f.Name]), values(bs[f.Name]), f.Name)
		}
	}
	require.Equal(t, 12, shared)
	require.NotEqual(t, values(as["coder_aibridged_tokens_total"]), values(bs["coder_aibridged_tokens_total"]))
}

func TestCoderdRegistryTotals(t *testing.T) {
	r, same := simulate.NewCoderdRegistry(7), simulate.NewCoderdRegistry(7)
	begin, err := r.Totals()
	require.NoError(t, err)
	var names []string
	for _, f := range coderdFamilies() {
		if f.Merge != metrics.MergeSum {
			continue
		}
		switch f.Type {
		case metrics.Counter:
			names = append(names, f.Name)
		case metrics.Histogram:
			names = append(names, f.Name+"_count", f.Name+"_sum")
		}
	}
	require.NotEmpty(t, names)
	for _, name := range names { // the newer names of these
		if newer := strings.Replace(name, "coder_aibridged_", "coder_ai_gateway_", 1); newer != name {
			names = append(names, newer)
		}
	}
	require.Len(t, begin, len(names))
	for i := range 3600 {
		r.Tick(noon.Add(time.Duration(i) * time.Second))
		same.Tick(noon.Add(time.Duration(i) * time.Second))
	}
	end, err := r.Totals()
	require.NoError(t, err)
	again, err := same.Totals()
	require.NoError(t, err)
	require.Equal(t, end, again, "the seed decides")
	families := gather(t, r)
	for _, name := range names {
		require.Contains(t, begin, name)
		require.Zero(t, begin[name], name)
		require.Greater(t, end[name], 10.0, name)
		require.Equal(t, math.Trunc(end[name]*1024), end[name]*1024, "%s is exact", name)
		require.Less(t, end[name]*1024, float64(1<<50), name)
		if f := families[strings.TrimSuffix(name, "_count")]; f != nil {
			sum := 0.0
			for _, v := range values(f) {
				sum += v
			}
			require.Equal(t, sum, end[name], name)
		}
	}
}

// A tick after a long time, or back in time, is no more than a minute.
func TestCoderdRegistryClock(t *testing.T) {
	requests := func(r *simulate.CoderdRegistry) float64 {
		totals, err := r.Totals()
		require.NoError(t, err)
		return totals["coderd_api_requests_processed_total"]
	}
	r := simulate.NewCoderdRegistry(1)
	r.Tick(noon)
	first := requests(r)
	require.Less(t, first, 100.0)
	r.Tick(noon.Add(24 * time.Hour))
	minute := requests(r) - first
	require.Greater(t, minute, 60.0)
	require.Less(t, minute, 2000.0)
	before := requests(r)
	r.Tick(noon)
	require.Equal(t, before, requests(r))
}

func BenchmarkCoderdRegistryTick(b *testing.B) {
	r := simulate.NewCoderdRegistry(1)
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Second)
		r.Tick(now)
	}
}

func BenchmarkCoderdRegistryGather(b *testing.B) {
	r := simulate.NewCoderdRegistry(1)
	for i := range 600 {
		r.Tick(noon.Add(time.Duration(i) * time.Second))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
