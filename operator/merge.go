package operator

import (
	"cmp"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// What several replicas have answered, made one answer. Arguments may be changed.

// mergeAgents returns the agents that replicas list, each once, in the order of a list.
func mergeAgents(answers []answer[[]*agentstatsv1.AgentSummary]) []*agentstatsv1.AgentSummary {
	all := mergeByKey(answers, (*agentstatsv1.AgentSummary).GetId, mergeAgent)
	slices.SortFunc(all, func(a, b *agentstatsv1.AgentSummary) int {
		return cmp.Or(cmp.Compare(a.GetOwner(), b.GetOwner()), cmp.Compare(a.GetWorkspace(), b.GetWorkspace()),
			cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return all
}

// mergeByKey returns what all lists have, each key once, in the order in which they came.
func mergeByKey[T any](answers []answer[[]T], keyOf func(T) string, merge func(a, b T) T) []T {
	var all []T
	index := make(map[string]int)
	for _, replica := range answers {
		for _, item := range replica.value {
			key := keyOf(item)
			if i, ok := index[key]; ok {
				all[i] = merge(all[i], item)
				continue
			}
			index[key] = len(all)
			all = append(all, item)
		}
	}
	return all
}

// mergeAgent returns an agent as two replicas together know it: the one that has its
// series is believed, and what the other one refused it is added.
func mergeAgent(a, b *agentstatsv1.AgentSummary) *agentstatsv1.AgentSummary {
	if a.Series == nil && b.Series != nil {
		a, b = b, a
	}
	a.Refused += b.GetRefused()
	a.LastSeenAt = later(a.GetLastSeenAt(), b.GetLastSeenAt())
	return a
}

// later returns the later one of two times, of which either may be absent.
func later(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if a == nil || b != nil && b.AsTime().After(a.AsTime()) {
		return b
	}
	return a
}

// mergeDescriptions returns one agent as replicas together know it: the one that has its
// session is believed. Sessions and refusals are those of all.
func mergeDescriptions(answers []answer[*agentstatsv1.DescribeAgentResponse]) *agentstatsv1.DescribeAgentResponse {
	merged := answers[0].value
	for _, r := range answers[1:] {
		a, b := merged, r.value
		if a.GetSession() == nil && b.GetSession() != nil {
			a, b = b, a
		}
		a.Summary = mergeAgent(a.GetSummary(), b.GetSummary())
		a.LastSessions = append(a.GetLastSessions(), b.GetLastSessions()...)
		a.Refused = mergeRefused(a.GetRefused(), b.GetRefused())
		if len(a.GetSeries()) == 0 {
			a.Series = b.GetSeries()
		}
		merged = a
	}
	slices.SortStableFunc(merged.GetLastSessions(), func(a, b *agentstatsv1.AgentSession) int {
		return b.GetOpenedAt().AsTime().Compare(a.GetOpenedAt().AsTime())
	})
	return merged
}

// mergeRefused adds what an agent was refused at two replicas, by reason, the newest first.
func mergeRefused(a, b []*agentstatsv1.Refused) []*agentstatsv1.Refused {
	all := mergeByKey([]answer[[]*agentstatsv1.Refused]{{value: a}, {value: b}}, (*agentstatsv1.Refused).GetReason,
		func(a, b *agentstatsv1.Refused) *agentstatsv1.Refused {
			if later(a.GetAt(), b.GetAt()) == b.GetAt() {
				a, b = b, a
			}
			a.Count += b.GetCount()
			return a
		})
	slices.SortStableFunc(all, func(a, b *agentstatsv1.Refused) int { return b.GetAt().AsTime().Compare(a.GetAt().AsTime()) })
	return all
}

// mergeRefusals returns whom replicas have refused something, at most limit agents, the
// newest first.
func mergeRefusals(answers []answer[*agentstatsv1.ListRefusalsResponse], limit int) *agentstatsv1.ListRefusalsResponse {
	merged := &agentstatsv1.ListRefusalsResponse{}
	var agents []answer[[]*agentstatsv1.RefusedAgent]
	var sums []answer[[]*agentstatsv1.RefusalSums]
	for _, r := range answers {
		agents = append(agents, answer[[]*agentstatsv1.RefusedAgent]{r.replica, r.value.GetAgents()})
		sums = append(sums, answer[[]*agentstatsv1.RefusalSums]{r.replica, r.value.GetSums()})
	}
	merged.Agents = mergeByKey(agents, (*agentstatsv1.RefusedAgent).GetId, func(a, b *agentstatsv1.RefusedAgent) *agentstatsv1.RefusedAgent {
		if a.GetName() == "" {
			a, b = b, a // one that is registered has a name
		}
		a.Refused = mergeRefused(a.GetRefused(), b.GetRefused())
		return a
	})
	newest := func(a *agentstatsv1.RefusedAgent) (at *timestamppb.Timestamp) {
		for _, r := range a.GetRefused() {
			at = later(at, r.GetAt())
		}
		return at
	}
	slices.SortStableFunc(merged.Agents, func(a, b *agentstatsv1.RefusedAgent) int { return newest(b).AsTime().Compare(newest(a).AsTime()) })
	merged.Agents = merged.Agents[:min(limit, len(merged.Agents))]
	merged.Sums = mergeByKey(sums, (*agentstatsv1.RefusalSums).GetBy, mergeSums)
	return merged
}

func mergeSums(a, b *agentstatsv1.RefusalSums) *agentstatsv1.RefusalSums {
	lists := []answer[[]*agentstatsv1.RefusalSum]{{value: a.GetSums()}, {value: b.GetSums()}}
	a.Sums = mergeByKey(lists, (*agentstatsv1.RefusalSum).GetName, func(a, b *agentstatsv1.RefusalSum) *agentstatsv1.RefusalSum {
		a.Items += b.GetItems()
		a.LastAt = later(a.GetLastAt(), b.GetLastAt())
		a.Reasons = mergeCounts(a.GetReasons(), b.GetReasons())
		return a
	})
	slices.SortStableFunc(a.GetSums(), func(a, b *agentstatsv1.RefusalSum) int { return cmp.Compare(b.GetItems(), a.GetItems()) })
	a.Others += b.GetOthers()
	return a
}

// mergeCounts adds counts by name, the largest first.
func mergeCounts(a, b []*agentstatsv1.NamedCount) []*agentstatsv1.NamedCount {
	sums := make(map[string]float64)
	for _, c := range slices.Concat(a, b) {
		sums[c.GetName()] += c.GetCount()
	}
	all := make([]*agentstatsv1.NamedCount, 0, len(sums))
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		all = append(all, &agentstatsv1.NamedCount{Name: name, Count: sums[name]})
	}
	slices.SortStableFunc(all, func(a, b *agentstatsv1.NamedCount) int { return cmp.Compare(b.GetCount(), a.GetCount()) })
	return all
}
