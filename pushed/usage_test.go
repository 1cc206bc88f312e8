package pushed

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// What is used of the limits of one instance is that of the one that has the most; of all
// it is what is alive.
func TestUsage(t *testing.T) {
	reg := prometheus.NewRegistry()
	f, err := New(new(memory), new(reserver), Options{}, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, f.load(t.Context(), start))
	pushText(t, f, start, 1, 1, "# TYPE a counter\na{l=\"1\"} 1\na{l=\"2\"} 1\na{l=\"3\"} 1\n")
	pushText(t, f, start, 2, 1, "# TYPE a counter\na 1\n# TYPE b gauge\nb 1\n")
	usage := func() map[string]float64 {
		families, err := reg.Gather()
		require.NoError(t, err)
		values := make(map[string]float64)
		for _, family := range families {
			if family.GetName() == "agentstatsd_usage" {
				for _, m := range family.Metric {
					values[m.Label[0].GetValue()] = m.GetGauge().GetValue()
				}
			}
		}
		return values
	}
	got := usage()
	require.Positive(t, got["push_row_bytes"])
	delete(got, "push_row_bytes")
	require.Equal(t, map[string]float64{"coderd_instances": 2, "pushed_series": 3, "pushed_series_total": 5, "pushed_families": 2}, got)

	f.expire(start.Add(time.Hour))
	require.Equal(t, 0.0, usage()["pushed_series_total"])
	require.Equal(t, 3.0, usage()["pushed_series"])
}
