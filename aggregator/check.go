package aggregator

import (
	"math"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// canonicalise puts the sample's labels into in.labels, sorted and without empty
// ones. It checks the limits of their size.
func (in *ingester) canonicalise(s *agent.Sample) (metrics.Reason, agent.Label) {
	switch {
	case s.Type > agent.Gauge:
		return reasonInvalidType, agent.Label{}
	case len(s.Name) > metrics.MaxNameBytes:
		return metrics.ReasonNameTooLong, agent.Label{}
	case len(s.Labels) > metrics.MaxLabels:
		return metrics.ReasonTooManyLabels, agent.Label{}
	}
	in.labels = in.labels[:0]
	size := 0
	for _, l := range s.Labels {
		if l.Value == "" {
			continue
		}
		if len(l.Name) > metrics.MaxLabelNameBytes {
			return metrics.ReasonLabelNameTooLong, l
		}
		if len(l.Value) > metrics.MaxLabelValueBytes {
			return metrics.ReasonLabelValueTooLong, l
		}
		size += len(l.Name) + len(l.Value)
		i := len(in.labels)
		in.labels = append(in.labels, l)
		for ; i > 0 && in.labels[i-1].Name > l.Name; i-- {
			in.labels[i] = in.labels[i-1]
		}
		in.labels[i] = l
	}
	if size > metrics.MaxLabelsBytes {
		return metrics.ReasonLabelsTooLong, agent.Label{}
	}
	return "", agent.Label{}
}

// checkNew checks a new name and its labels. Those of a desc were checked before.
func (in *ingester) checkNew(s *agent.Sample) (metrics.Reason, agent.Label) {
	if reason := metrics.CheckForwardedName(s.Name); reason != "" {
		return reason, agent.Label{}
	}
	for i, l := range in.labels {
		if reason := metrics.CheckLabel(l.Name, l.Value); reason != "" {
			return reason, l
		}
		if i > 0 && l.Name == in.labels[i-1].Name {
			return metrics.ReasonDuplicateLabel, l
		}
	}
	return "", agent.Label{}
}

// countable reports whether v can be a counter's value.
func countable(v float64) bool {
	return v >= 0 && v <= math.MaxFloat64
}
