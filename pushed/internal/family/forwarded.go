package family

import (
	"fmt"
	"slices"

	dto "github.com/prometheus/client_model/go"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// withoutForwarded returns the series of a family without those that a coderd has from
// its agents, and why these are refused; nil: there are none. Merged, they would be
// coderd's own: counters of agents that are gone would count for ever, and those of
// agents that moved count twice.
func withoutForwarded(in *dto.MetricFamily) ([]*dto.Metric, *Refusal) {
	if metrics.IsCoderds(in.GetName()) || len(in.Metric) == 0 {
		return in.Metric, nil
	}
	// How an agent's series is known as one.
	sign := "the help of its family"
	forwarded := func(*dto.Metric) bool { return true }
	if in.GetHelp() != metrics.ForwardedHelp {
		first := slices.IndexFunc(in.Metric, func(m *dto.Metric) bool { return identityOf(m) != nil })
		if first < 0 {
			return in.Metric, nil
		}
		label := identityOf(in.Metric[first])
		sign = fmt.Sprintf("%s=%q", label.GetName(), agent.ShortenText(label.GetValue(), metrics.MaxLabelValueBytes))
		forwarded = func(m *dto.Metric) bool { return identityOf(m) != nil }
	}
	own := slices.DeleteFunc(slices.Clone(in.Metric), forwarded)
	r := refuse(metrics.ReasonForwardedSeries,
		"series of an agent by %s, which the service has from the agent or a relay: turn off its collection in coderd (CODER_PROMETHEUS_COLLECT_AGENT_STATS)", sign)
	r.Scope, r.Count = OfSeries, len(in.Metric)-len(own)
	return own, r
}

// identityOf returns a label of a series that says which agent it is of; nil: none does.
func identityOf(m *dto.Metric) *dto.LabelPair {
	for _, l := range m.GetLabel() {
		if metrics.NamesAgent(l.GetName()) && l.GetValue() != "" {
			return l
		}
	}
	return nil
}

// dropForwarded drops the series that a coderd has from its agents. Rows that were
// written before such series were refused have them. No pushed series may equal one
// that an agent sends.
func (f *Family) dropForwarded() {
	if metrics.IsCoderds(f.Name) || f.Passed {
		return
	}
	f.Series = slices.DeleteFunc(f.Series, func(s Series) bool {
		for name := range eachLabel(s.Labels) {
			if metrics.NamesAgent(name) {
				return true
			}
		}
		return f.Help == metrics.ForwardedHelp
	})
}
