package aggregator

import (
	"cmp"
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// FamilySeries is how many series an agent has of a family.
type FamilySeries struct {
	Family string
	Series int
}

// SeriesOf returns how many series of an agent are in memory, without those of its state;
// false: the agent has no session here, and no series.
func (a *Aggregator) SeriesOf(id agent.ID) (series int, known bool) {
	as := a.agent(id)
	if as == nil {
		return 0, false
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	for range as.all() {
		series++
	}
	return series, true
}

// FamiliesOf returns the families of which SeriesOf counts series, those with the most
// first.
func (a *Aggregator) FamiliesOf(id agent.ID) []FamilySeries {
	as := a.agent(id)
	if as == nil {
		return nil
	}
	counts := make(map[*family]int)
	as.mu.Lock()
	for s := range as.all() {
		counts[s.desc.family]++
	}
	as.mu.Unlock()
	families := make([]FamilySeries, 0, len(counts))
	for f, n := range counts {
		families = append(families, FamilySeries{f.name, n})
	}
	slices.SortFunc(families, func(a, b FamilySeries) int {
		return cmp.Or(cmp.Compare(b.Series, a.Series), cmp.Compare(a.Family, b.Family))
	})
	return families
}
