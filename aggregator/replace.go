package aggregator

import (
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// isLimit tells whether a sample is refused for want of room, so that series
// which the agent has no more could make some.
func isLimit(r metrics.Reason) bool { return refusalKind(r) == agent.RefusedLimit }

// retry takes in the samples that found no room. A report is all that the agent
// has: series that are not in it go, the ones first that are absent the longest,
// as far as others need their place.
func (in *intake) retry() {
	next := 0
	for _, i := range in.deferred {
		s := in.report.Sample(i)
		in.canonicalise(s)
		reason, label := in.place(s, canonical(s.Value))
		for isLimit(reason) && in.dropAbsent(&next, reason == reasonTooManyFamilies) {
			reason, label = in.place(s, canonical(s.Value))
		}
		if reason != "" {
			in.refuseSample(reason, s, label)
		}
	}
}

// dropAbsent drops the first series from next on that the report does not have;
// false if there is none. Next counts stale series, then those of the report
// before. If families are wanted, it keeps series of those that others have too.
func (in *intake) dropAbsent(next *int, families bool) bool {
	src := in.src
	for ; *next < len(src.stale)+len(src.series); *next++ {
		var s *series
		if i := *next - len(src.stale); i >= 0 {
			s = &src.series[i]
		} else {
			s = &src.stale[*next].series
		}
		if s.desc == nil || in.held[s.desc] == taken || families && !s.desc.family.hasOneAgent() {
			continue
		}
		delete(in.held, s.desc)
		in.agg.drop(src, s)
		src.tidyFamilies(false)
		in.agg.metrics.replaced.Inc()
		return true
	}
	return false
}
