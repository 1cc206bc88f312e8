package database

import (
	"encoding/csv"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bench/figure"
)

// TestMeasure has a PostgreSQL, which it starts, looked at for a moment.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "agentstatsd")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/agentstatsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	build.Dir = filepath.Join("..", "..")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	run := new(figure.Run)
	l := Load{Agents: 40, For: 3 * time.Second, Every: time.Second}
	require.NoError(t, Measure(t.Context(), run, binary, dir, dir, l))
	samples := 0
	for _, subject := range Tables {
		for _, metric := range []string{Rows, Dead, Heap, Index, Vacuums} {
			values := run.Values(figure.Key{Section: Section, Case: l.Case(), Subject: subject, Metric: metric})
			require.GreaterOrEqual(t, len(values), 2, "%s, %s", subject, metric)
		}
	}
	for _, f := range run.Figures {
		samples += len(f.Values)
	}
	file, err := os.Open(filepath.Join(dir, "database.csv"))
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	rows, err := csv.NewReader(file).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 1+samples)
	require.Positive(t, run.Values(figure.Key{Section: Section, Case: l.Case(), Subject: Log, Metric: LogBytes})[0])
}

func TestSince(t *testing.T) {
	at := time.Unix(0, 0)
	before := looked{at: at, log: 1000, tables: map[string]table{"metadata": {inserted: 10, updated: 100, heapOnly: 50, deleted: 1}}}
	now := looked{at: at.Add(2 * time.Minute), log: 3000, tables: map[string]table{
		"metadata": {inserted: 12, updated: 300, heapOnly: 200, deleted: 3, dead: 7, heap: 8192, index: 16384, vacuums: 2},
	}}
	list := now.since(before)
	require.Equal(t, value{Log, LogBytes, 1000}, list[0])
	require.Equal(t, []value{
		{"metadata", Rows, 102}, {"metadata", HeapOnly, 75}, {"metadata", Dead, 7},
		{"metadata", Heap, 8192}, {"metadata", Index, 16384}, {"metadata", Vacuums, 2},
	}, list[1:7])
}

func TestThirds(t *testing.T) {
	middle, last := Thirds([]float64{1, 2, 3, 4, 5, 6, 7})
	require.Equal(t, []float64{3, 4, 5}, middle)
	require.Equal(t, []float64{6, 7}, last)
}
