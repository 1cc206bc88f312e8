package adminapi

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// gathered are the service's own metrics at one moment, by family.
type gathered map[string]*dto.MetricFamily

// gather returns the metrics now. After an error it returns those that could be read.
func gather(from prometheus.Gatherer) (gathered, error) {
	families, err := from.Gather()
	g := make(gathered, len(families))
	for _, f := range families {
		g[f.GetName()] = f
	}
	if err != nil {
		return g, fmt.Errorf("gather metrics: %w", err)
	}
	return g, nil
}

// value returns the sum of a family's gauges and counters; 0: it has none.
func (g gathered) value(family string) (sum float64) {
	for _, m := range g[family].GetMetric() {
		sum += valueOf(m)
	}
	return sum
}

// by returns the sums of a family's gauges and counters by the values of a label.
func (g gathered) by(family, label string) map[string]float64 {
	sums := make(map[string]float64, len(g[family].GetMetric()))
	for _, m := range g[family].GetMetric() {
		sums[labelOf(m, label)] += valueOf(m)
	}
	return sums
}

// valueOf returns the value of a gauge or a counter.
func valueOf(m *dto.Metric) float64 {
	if m.GetCounter() != nil {
		return m.GetCounter().GetValue()
	}
	return m.GetGauge().GetValue()
}

// labelOf returns the value of a label; empty: it has none.
func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
