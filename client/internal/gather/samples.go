package gather

import (
	"math"
	"slices"
	"strconv"

	dto "github.com/prometheus/client_model/go"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Samples returns families as an agent's report has them. Histograms and summaries have
// the series of the text format: le and quantile are labels, buckets are cumulative.
// Native buckets, timestamps and exemplars are left out.
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
		labels = append(labels, label(l.GetName(), l.GetValue()))
	}
	switch family.GetType() {
	case dto.MetricType_COUNTER:
		s.put(name, counter, m.GetCounter().GetValue(), labels)
	case dto.MetricType_GAUGE:
		s.put(name, gauge, m.GetGauge().GetValue(), labels)
	case dto.MetricType_UNTYPED:
		s.put(name, untyped, m.GetUntyped().GetValue(), labels)
	case dto.MetricType_SUMMARY:
		for _, q := range m.GetSummary().GetQuantile() {
			s.put(name, gauge, q.GetValue(), labels, label("quantile", number(q.GetQuantile())))
		}
		s.put(name+"_sum", counter, m.GetSummary().GetSampleSum(), labels)
		s.put(name+"_count", counter, float64(m.GetSummary().GetSampleCount()), labels)
	case dto.MetricType_HISTOGRAM:
		s.addHistogram(name, m.GetHistogram(), labels)
	}
}

func (s *samples) addHistogram(name string, h *dto.Histogram, labels []*agentstatsv1.Stats_Metric_Label) {
	count := float64(h.GetSampleCount())
	if h.GetSampleCountFloat() > 0 {
		count = h.GetSampleCountFloat()
	}
	hasInf := false
	for _, b := range h.GetBucket() {
		n := float64(b.GetCumulativeCount())
		if b.GetCumulativeCountFloat() > 0 {
			n = b.GetCumulativeCountFloat()
		}
		hasInf = hasInf || math.IsInf(b.GetUpperBound(), 1)
		s.put(name+"_bucket", counter, n, labels, label("le", number(b.GetUpperBound())))
	}
	if !hasInf {
		s.put(name+"_bucket", counter, count, labels, label("le", "+Inf"))
	}
	s.put(name+"_sum", counter, h.GetSampleSum(), labels)
	s.put(name+"_count", counter, count, labels)
}

func (s *samples) put(name string, kind agentstatsv1.Stats_Metric_Type, value float64, labels []*agentstatsv1.Stats_Metric_Label, more ...*agentstatsv1.Stats_Metric_Label) {
	*s = append(*s, &agentstatsv1.Stats_Metric{Name: name, Type: kind, Value: value, Labels: slices.Concat(labels, more)})
}

func label(name, value string) *agentstatsv1.Stats_Metric_Label {
	return &agentstatsv1.Stats_Metric_Label{Name: name, Value: value}
}

// number is a value of a label, as the text format has it.
func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
