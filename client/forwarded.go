package client

import (
	"fmt"
	"slices"

	dto "github.com/prometheus/client_model/go"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// reasonForwarded is why series of agents are not sent, as the service calls it.
const reasonForwarded = "forwarded_series"

// forwardedHelp is the help of all families that a coderd forwards for its agents.
const forwardedHelp = "Metrics are forwarded from workspace agents connected to this instance of coderd."

// withIdentity are the families of coderd's own that have labels of an agent or a
// workspace. The service has the same list: its catalogue.
var withIdentity = map[string]bool{
	"coderd_agents_first_connection_seconds": true,
	"coderd_workspace_builds_total":          true,
}

// withoutForwarded returns family without the series of agents; nil: it has no others. A
// coderd has them from its agents. The service has them from agents, or by relays. They
// are refused by the message, which is nil if there are none. family is not changed.
func withoutForwarded(family *dto.MetricFamily) (*dto.MetricFamily, *forwardedSeries) {
	if withIdentity[family.GetName()] {
		return family, nil
	}
	forwarded := ofAgent
	if family.GetHelp() == forwardedHelp {
		forwarded = func(*dto.Metric) bool { return true }
	}
	if !slices.ContainsFunc(family.Metric, forwarded) {
		return family, nil
	}
	var own []*dto.Metric
	for _, m := range family.Metric {
		if !forwarded(m) {
			own = append(own, m)
		}
	}
	series := &forwardedSeries{family: family.GetName(), count: len(family.Metric) - len(own), whole: len(own) == 0}
	if series.whole {
		return nil, series
	}
	return &dto.MetricFamily{Name: family.Name, Help: family.Help, Type: family.Type, Metric: own}, series
}

// ofAgent reports whether a series has a label that says which agent it is of.
func ofAgent(m *dto.Metric) bool {
	for _, l := range m.GetLabel() {
		switch l.GetName() {
		case "agent_name", "username", "workspace_name":
			if l.GetValue() != "" {
				return true
			}
		}
	}
	return false
}

// forwardedSeries are the series of agents in one family.
type forwardedSeries struct {
	family string
	count  int
	whole  bool // the family has no others
}

func (s *forwardedSeries) refusal() *agentstatsv1.FamilyRefusal {
	r := &agentstatsv1.FamilyRefusal{
		Name: s.family, Reason: reasonForwarded,
		Message: fmt.Sprintf("%d series of agents, which the service has from agents or relays, are not pushed", s.count),
	}
	if !s.whole {
		r.Series = int64(s.count)
	}
	return r
}
