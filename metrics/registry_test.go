package metrics

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// A registry knows the families of series by labels, sorted, with or without series.
func TestHeaders(t *testing.T) {
	reg := NewRegistry()
	require.Empty(t, reg.Headers())
	label := []string{"l"}
	counters := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "c_total", Help: "Has a \\ and a \"."}, label)
	require.NoError(t, reg.Register(counters))
	require.NoError(t, reg.Register(prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "b_seconds", Help: "B."}, label)))
	require.NoError(t, reg.Register(prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "d", Help: "D."}, label)))
	require.NoError(t, reg.Register(prometheus.NewGauge(prometheus.GaugeOpts{Name: "a", Help: "Has a series."})))
	counters.WithLabelValues("v")
	require.Error(t, reg.Register(counters))
	require.Equal(t, []Header{
		{"b_seconds", "B.", Histogram}, {"c_total", `Has a \ and a ".`, Counter}, {"d", "D.", Gauge},
	}, reg.Headers())
	clear(reg.Headers()) // of whoever asked
	require.Equal(t, "# HELP c_total Has a \\\\ and a \".\n# TYPE c_total counter\n", string(reg.Headers()[1].AppendText(nil)))
}
