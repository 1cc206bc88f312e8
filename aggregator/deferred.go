package aggregator

import (
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// isLimit reports whether a sample is refused for a limit. Series that the agent
// does not report any more could then be removed for it.
func isLimit(r metrics.Reason) bool { return refusalKind(r) == agent.RefusedLimit }

// retryDeferred ingests the samples that were over a limit. A report is all that
// the agent has. So series that are absent from it are removed as needed, the
// longest absent first.
func (in *ingester) retryDeferred() {
	next := 0
	for _, i := range in.deferred {
		s := in.report.Sample(i)
		in.canonicalise(s)
		reason, label := in.ingestCanonical(s, metrics.CanonicalValue(s.Value))
		for isLimit(reason) && in.dropAbsent(&next, reason == reasonTooManyFamilies) {
			reason, label = in.ingestCanonical(s, metrics.CanonicalValue(s.Value))
		}
		if reason != "" {
			in.refuseSample(reason, s, label)
		}
	}
}

// dropAbsent drops the first absent series from next on; false if there is none.
// next counts stale series, then those of the report before. With families it keeps
// the series of families that other agents have too.
func (in *ingester) dropAbsent(next *int, families bool) bool {
	as := in.agent
	for ; *next < len(as.stale)+len(as.series); *next++ {
		var s *series
		if i := *next - len(as.stale); i >= 0 {
			s = &as.series[i]
		} else {
			s = &as.stale[*next].series
		}
		if s.desc == nil || in.places[s.desc] == inReport || families && !s.desc.family.hasOneAgent() {
			continue
		}
		delete(in.places, s.desc)
		in.agg.drop(as, s)
		as.removeUnusedFamilies(false)
		in.agg.metrics.replaced.Inc()
		return true
	}
	return false
}
