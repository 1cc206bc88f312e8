package gather

import (
	"cmp"

	dto "github.com/prometheus/client_model/go"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Samples returns families as an agent's report has them. Of histograms and summaries it
// has the sums and counts only: le and quantile are labels that agents may not send.
// Timestamps and exemplars are left out.
func Samples(families []*dto.MetricFamily) []*agentstatsv1.Stats_Metric {
	var all samples
	for _, family := range families {
		for _, m := range family.GetMetric() {
			all.add(family, m)
		}
	}
	return all
}

type samples []*agentstatsv1.Stats_Metric

const (
	untyped = agentstatsv1.Stats_Metric_TYPE_UNSPECIFIED
	counter = agentstatsv1.Stats_Metric_TYPE_COUNTER
	gauge   = agentstatsv1.Stats_Metric_TYPE_GAUGE
)

func (s *samples) add(family *dto.MetricFamily, m *dto.Metric) {
	name := family.GetName()
	labels := make([]*agentstatsv1.Stats_Metric_Label, 0, len(m.GetLabel()))
	for _, l := range m.GetLabel() {
		labels = append(labels, &agentstatsv1.Stats_Metric_Label{Name: l.GetName(), Value: l.GetValue()})
	}
	switch family.GetType() {
	case dto.MetricType_COUNTER:
		s.put(name, counter, m.GetCounter().GetValue(), labels)
	case dto.MetricType_GAUGE:
		s.put(name, gauge, m.GetGauge().GetValue(), labels)
	case dto.MetricType_UNTYPED:
		s.put(name, untyped, m.GetUntyped().GetValue(), labels)
	case dto.MetricType_SUMMARY:
		s.put(name+"_sum", counter, m.GetSummary().GetSampleSum(), labels)
		s.put(name+"_count", counter, float64(m.GetSummary().GetSampleCount()), labels)
	case dto.MetricType_HISTOGRAM:
		h := m.GetHistogram()
		s.put(name+"_sum", counter, h.GetSampleSum(), labels)
		s.put(name+"_count", counter, cmp.Or(h.GetSampleCountFloat(), float64(h.GetSampleCount())), labels)
	}
}

func (s *samples) put(name string, kind agentstatsv1.Stats_Metric_Type, value float64, labels []*agentstatsv1.Stats_Metric_Label) {
	*s = append(*s, &agentstatsv1.Stats_Metric{Name: name, Type: kind, Value: value, Labels: labels})
}
