package ownmetrics

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestRegister(t *testing.T) {
	reg := prometheus.NewRegistry()
	gauge := func(name string) prometheus.Collector {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: name})
	}
	require.NoError(t, Register(reg, gauge("a"), gauge("b")))
	require.ErrorContains(t, Register(reg, gauge("c"), gauge("b"), gauge("d")), "register metrics: duplicate metrics collector")
	families, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, families, 3, "those before the first that is refused")
}

// All series of known values are there before anything is counted, and none of others.
func TestVectorsHaveTheirSeries(t *testing.T) {
	type kind string
	reg := prometheus.NewRegistry()
	require.NoError(t, Register(reg,
		CounterVec("c_total", "Counts.", Values("kind", kind("x"), kind("y")), Values("reason", "a", "b")),
		GaugeVec("g", "Gauges.", Values("kind", "x")),
		HistogramVec(prometheus.HistogramOpts{Name: "h_seconds", Help: "Observes.", Buckets: []float64{1}}, Values("kind", "x")),
		CounterVec("open_total", "Has none.", Open("target"), Values("reason", "a")),
	))
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP c_total Counts.
# TYPE c_total counter
c_total{kind="x",reason="a"} 0
c_total{kind="x",reason="b"} 0
c_total{kind="y",reason="a"} 0
c_total{kind="y",reason="b"} 0
# HELP g Gauges.
# TYPE g gauge
g{kind="x"} 0
# HELP h_seconds Observes.
# TYPE h_seconds histogram
h_seconds_bucket{kind="x",le="1"} 0
h_seconds_bucket{kind="x",le="+Inf"} 0
h_seconds_sum{kind="x"} 0
h_seconds_count{kind="x"} 0
`)))
}
