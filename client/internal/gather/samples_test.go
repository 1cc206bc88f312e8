package gather

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

func TestSamples(t *testing.T) {
	reg := prometheus.NewRegistry()
	labels := prometheus.Labels{"a": "b"}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "c_total"}, []string{"a", "z"})
	requests.WithLabelValues("b", "y").Add(2)
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "g"})
	gauge.Set(-1.5)
	histogram := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", ConstLabels: labels, Buckets: []float64{0.25, 1}, NativeHistogramBucketFactor: 1.1})
	for _, v := range []float64{0.25, 0.5, 8} {
		histogram.Observe(v)
	}
	summary := prometheus.NewSummary(prometheus.SummaryOpts{Name: "s", Objectives: map[float64]float64{0.5: 0}})
	summary.Observe(3)
	reg.MustRegister(requests, gauge, histogram, summary,
		prometheus.NewUntypedFunc(prometheus.UntypedOpts{Name: "u"}, func() float64 { return 7 }))
	families, err := reg.Gather()
	require.NoError(t, err)
	var got []string
	for _, m := range Samples(families) {
		var labels []string
		for _, l := range m.GetLabels() {
			labels = append(labels, l.GetName()+"="+l.GetValue())
		}
		got = append(got, fmt.Sprintf("%s %d {%s} %v", m.GetName(), m.GetType(), strings.Join(labels, ","), m.GetValue()))
	}
	require.Equal(t, []string{
		"c_total 1 {a=b,z=y} 2",
		"g 2 {} -1.5",
		"h_sum 1 {a=b} 8.75",
		"h_count 1 {a=b} 3",
		"s_sum 1 {} 3",
		"s_count 1 {} 1",
		"u 0 {} 7",
	}, got)
}
