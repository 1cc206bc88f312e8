package figure

import (
	"math"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSummarize(t *testing.T) {
	require.Equal(t, Summary{N: 3, Median: 2, Min: 1, Max: 9}, Summarize([]float64{9, 1, 2}))
	require.Equal(t, Summary{N: 2, Median: 1.5, Min: 1, Max: 2}, Summarize([]float64{2, 1}))
	require.True(t, math.IsNaN(Summarize(nil).Median))
	require.Zero(t, Summarize(nil).N)
}

func TestPercentile(t *testing.T) {
	values := []float64{40, 10, 30, 20, 50}
	for p, want := range map[float64]float64{0: 10, 25: 20, 50: 30, 90: 46, 99: 49.6, 100: 50} {
		require.InDelta(t, want, Percentile(values, p), 1e-9, "percentile %v", p)
	}
	require.Equal(t, []float64{40, 10, 30, 20, 50}, values, "the values are left as they are")
}

func TestRatios(t *testing.T) {
	require.Equal(t, []float64{2, 3}, Ratios([]float64{4, 9}, []float64{2, 3}), "pairs")
	require.Equal(t, []float64{5, 10, 20}, Ratios([]float64{20}, []float64{4, 2, 1}), "one for all")
	require.Equal(t, []float64{1, 2, 3}, Ratios([]float64{2, 4, 6}, []float64{1, 3}), "the median for all")
	require.Nil(t, Ratios(nil, []float64{1}))
	require.Nil(t, Ratios([]float64{1}, nil))
}

func TestResults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.json")
	results, err := Read(file)
	require.NoError(t, err, "there is no file yet")
	require.Empty(t, results)

	k := Key{Section: "scrape", Case: "10", Subject: "agentstatsd", Metric: "ms"}
	other := Key{Section: "ingest", Case: "8", Subject: "agentstatsd", Metric: "us"}
	run := &Run{Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	run.Add(k, 1)
	run.Add(other, 7)
	run.Add(k, 2)
	run.Note("seen %d times", 2)
	run.Note("seen %d times", 2)
	require.NoError(t, Results{"bench": run}.Write(file))

	results, err = Read(file)
	require.NoError(t, err)
	require.Equal(t, []float64{1, 2}, results.Values(k))
	require.Equal(t, []string{"seen 2 times"}, results["bench"].Notes)

	again := results["bench"]
	again.Add(k, 3)
	again.Drop("scrape")
	require.Nil(t, results.Values(k))
	require.Equal(t, []float64{7}, results.Values(other))
	again.Add(k, 4)
	require.Equal(t, []float64{4}, results.Values(k))
}

func TestField(t *testing.T) {
	text := []byte("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: another\n")
	require.Equal(t, "A CPU @ 2 GHz", field(text, "model name"))
	require.Empty(t, field(text, "flags"))
}

func TestThisMachine(t *testing.T) {
	m := ThisMachine()
	require.Positive(t, m.Cores)
	require.Positive(t, m.MemoryBytes)
	require.NotEqual(t, "unknown", m.Kernel)
}

func TestModulesOf(t *testing.T) {
	info := &debug.BuildInfo{Main: debug.Module{Path: "d", Version: "v4"}, Deps: []*debug.Module{{Path: "a", Version: "v1"}, {Path: "b", Version: "v2"}, {Path: "c", Version: "v3"}}}
	require.Equal(t, []Module{{"c", "v3"}, {"a", "v1"}, {"d", "v4"}}, ModulesOf(info, []string{"c", "missing", "a", "d"}))
}
