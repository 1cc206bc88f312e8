package aggregator

import (
	"fmt"
	"strings"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// Reasons beside those that package metrics finds.
const (
	reasonInvalidStats    metrics.Reason = "invalid_stats"
	reasonInvalidType     metrics.Reason = "invalid_type"
	reasonInvalidValue    metrics.Reason = "invalid_value"
	reasonDuplicateSeries metrics.Reason = "duplicate_series"
	reasonAgentSeries     metrics.Reason = "too_many_agent_series"
	reasonOwnerSeries     metrics.Reason = "too_many_owner_series"
	reasonTooManySeries   metrics.Reason = "too_many_series"
	reasonAgentBytes      metrics.Reason = "too_many_agent_bytes"
	reasonOwnerBytes      metrics.Reason = "too_many_owner_bytes"
	reasonTooManyBytes    metrics.Reason = "too_many_bytes"
	reasonAgentFamilies   metrics.Reason = "too_many_agent_families"
	reasonTooManyFamilies metrics.Reason = "too_many_families"
)

// Reasons that others ask for: another type than the family has, of agents' samples alone
// or because coderd pushes it.
const (
	ReasonWrongType    metrics.Reason = "wrong_type"
	ReasonPushedFamily metrics.Reason = "pushed_family"
)

// refusalReasons are all reasons, as the counter labels them.
var refusalReasons = []metrics.Reason{
	metrics.ReasonInvalidName, metrics.ReasonNameTooLong, metrics.ReasonReservedName, metrics.ReasonInvalidLabelName,
	metrics.ReasonLabelNameTooLong, metrics.ReasonReservedLabel, metrics.ReasonDuplicateLabel, metrics.ReasonInvalidLabelValue,
	metrics.ReasonLabelValueTooLong, metrics.ReasonTooManyLabels, metrics.ReasonLabelsTooLong,
	reasonInvalidStats, reasonInvalidType, reasonInvalidValue, ReasonWrongType, ReasonPushedFamily, reasonDuplicateSeries,
	reasonAgentSeries, reasonOwnerSeries, reasonTooManySeries, reasonAgentBytes, reasonOwnerBytes, reasonTooManyBytes,
	reasonAgentFamilies, reasonTooManyFamilies,
}

// refusalKind returns whether sending again can help.
func refusalKind(r metrics.Reason) agent.RefusalKind {
	switch r {
	case metrics.ReasonReservedName, metrics.ReasonReservedLabel, ReasonPushedFamily:
		return agent.RefusedNotAllowed
	case reasonAgentSeries, reasonOwnerSeries, reasonTooManySeries, reasonAgentBytes, reasonOwnerBytes, reasonTooManyBytes,
		reasonAgentFamilies, reasonTooManyFamilies:
		return agent.RefusedLimit
	}
	return agent.RefusedInvalid
}

// refuse records that something called name is refused. It calls message for the
// first one of each reason.
func (in *ingester) refuse(r metrics.Reason, name string, message func() string) {
	var to *agent.Refusal
	for i := range in.refusals {
		if in.refusals[i].Reason == string(r) {
			to = &in.refusals[i]
		}
	}
	if to == nil {
		in.refusals = append(in.refusals, agent.Refusal{
			Kind:    refusalKind(r),
			Reason:  string(r),
			Message: message(),
		})
		to = &in.refusals[len(in.refusals)-1]
	}
	to.Count++
	if len(to.Names) < agent.MaxRefusalNames {
		to.Names = append(to.Names, copyName(name))
	}
}

// copyName returns a copy of name, cut to the longest name that is allowed.
func copyName(name string) string {
	return strings.Clone(agent.ShortenText(name, metrics.MaxNameBytes))
}

// refuseSample refuses a sample for a reason that lies in its name, or in one of
// its labels.
func (in *ingester) refuseSample(r metrics.Reason, s *agent.Sample, l agent.Label) {
	in.refuse(r, s.Name, func() string {
		name, label := copyName(s.Name), copyName(l.Name)
		switch r {
		case metrics.ReasonInvalidName:
			return fmt.Sprintf("sample name %q is not like [a-zA-Z_:][a-zA-Z0-9_:]*", name)
		case metrics.ReasonNameTooLong:
			return fmt.Sprintf("sample name of %d bytes exceeds %d bytes", len(s.Name), metrics.MaxNameBytes)
		case metrics.ReasonReservedName:
			return fmt.Sprintf("family %s is not for agents to send", name)
		case metrics.ReasonInvalidLabelName:
			return fmt.Sprintf("label name %q of %s is not like [a-zA-Z_][a-zA-Z0-9_]*", label, name)
		case metrics.ReasonLabelNameTooLong:
			return fmt.Sprintf("label name of %d bytes of %s exceeds %d bytes", len(l.Name), name, metrics.MaxLabelNameBytes)
		case metrics.ReasonReservedLabel:
			return fmt.Sprintf("label %s of %s is not for agents to send", label, name)
		case metrics.ReasonDuplicateLabel:
			return fmt.Sprintf("label %s of %s is there twice", label, name)
		case metrics.ReasonInvalidLabelValue:
			return fmt.Sprintf("value of label %s of %s is not UTF-8", label, name)
		case metrics.ReasonLabelValueTooLong:
			return fmt.Sprintf("value of %d bytes of label %s of %s exceeds %d bytes",
				len(l.Value), label, name, metrics.MaxLabelValueBytes)
		case metrics.ReasonTooManyLabels:
			return fmt.Sprintf("%d labels of %s exceed %d", len(s.Labels), name, metrics.MaxLabels)
		case metrics.ReasonLabelsTooLong:
			return fmt.Sprintf("labels of %s exceed %d bytes together", name, metrics.MaxLabelsBytes)
		case reasonInvalidType:
			return fmt.Sprintf("the type of %s is none of the contract's", name)
		case reasonInvalidValue:
			return fmt.Sprintf("value %v of counter %s is negative or not finite", s.Value, name)
		case ReasonWrongType:
			return fmt.Sprintf("type %v of %s is not that of the family", sampleType(s.Type), name)
		case ReasonPushedFamily:
			return fmt.Sprintf("%s as a %v cannot be served beside a family that coderd pushes: of this name with another type, or with equal lines",
				name, sampleType(s.Type))
		case reasonDuplicateSeries:
			return fmt.Sprintf("%s is there twice with the same labels", name)
		}
		return in.limitMessage(r, name)
	})
}

// limitMessage says which limit a sample exceeds.
func (in *ingester) limitMessage(r metrics.Reason, name string) string {
	o := in.agg.opts.Load()
	switch r {
	case reasonAgentSeries:
		return fmt.Sprintf("%s would exceed the agent's %d series (--max-series-per-agent), its report has %d", name, o.MaxSeriesPerAgent, in.report.Len())
	case reasonOwnerSeries:
		return fmt.Sprintf("%s would exceed the %d series of all agents of the owner (--max-series-per-owner)", name, o.MaxSeriesPerOwner)
	case reasonAgentBytes:
		return fmt.Sprintf("%s would exceed %d bytes of names and labels of the agent's series (--max-series-bytes-per-agent)", name, o.MaxSeriesBytesPerAgent)
	case reasonOwnerBytes:
		return fmt.Sprintf("%s would exceed %d bytes of names and labels of the series of all agents of the owner (--max-series-bytes-per-owner)", name, o.MaxSeriesBytesPerOwner)
	case reasonTooManyBytes:
		return fmt.Sprintf("%s would exceed %d bytes of names and labels of the series of all agents (--max-series-bytes)", name, o.MaxSeriesBytes)
	case reasonAgentFamilies:
		return fmt.Sprintf("%s would exceed the agent's %d families (--max-families-per-agent), its report has %d series", name, o.MaxFamiliesPerAgent, in.report.Len())
	case reasonTooManyFamilies:
		return fmt.Sprintf("%s would exceed %d families of all agents (--max-families)", name, o.MaxFamilies)
	}
	return fmt.Sprintf("the limit of %d series of all agents is reached (--max-series)", o.MaxSeries)
}
