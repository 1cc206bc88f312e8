package aggregator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/aggregator/internal/walk"
)

// WhatIf is how many series would be served with other labels in Options.GroupBy.
type WhatIf struct {
	// Before are the series that are served now. After are those that would be.
	Before, After int
	// Names is the number of families that have series, before or after.
	Names int
	// Families are those with the largest differences, the largest first, equal ones by name.
	Families []FamilyWhatIf
}

// FamilyWhatIf is what WhatIf has of one family.
type FamilyWhatIf struct {
	Name          string
	Before, After int
}

// WhatIf returns how many series a scrape would have if Options.GroupBy were groupBy, at most
// limit families, at most cardinality.MaxCounts; 0: cardinality.DefaultCounts. States are the same before and after.
//
// Before has all groups: also sums that outlived their agents, and groups that have no line as
// all values are left out. After has what agents have now, so no such sums. Families that
// would be refused then are not in After, as coderd pushes them. See ReserveFamilies.
//
// An error names a label that is not one of IdentityLabels. WhatIf takes as long as there are
// series. It blocks and ends like Cardinality.
func (a *Aggregator) WhatIf(ctx context.Context, groupBy []string, limit int) (*WhatIf, error) {
	keep, err := Options{GroupBy: groupBy}.keptLabels()
	if err == nil {
		err = cardinality.CheckLimit(limit)
	}
	if err != nil {
		return nil, fmt.Errorf("what if: %w", err)
	}
	out, err := a.compareGroupings(ctx, keep, cmp.Or(limit, cardinality.DefaultCounts))
	if err != nil {
		return nil, fmt.Errorf("what if: %w", err)
	}
	return out, nil
}

func (a *Aggregator) compareGroupings(ctx context.Context, keep identityLabels, limit int) (*WhatIf, error) {
	done, err := a.beginCounting(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	w := newRegrouping(keep)
	if err := a.walkAgents(ctx, w.addAgent); err != nil {
		return nil, err
	}
	if err := w.count(ctx); err != nil {
		return nil, err
	}
	of := make(map[string]*FamilyWhatIf)
	at := func(name string) *FamilyWhatIf {
		n := of[name]
		if n == nil {
			n = &FamilyWhatIf{Name: name}
			of[name] = n
		}
		return n
	}
	for f, n := range w.after {
		if !f.refusedBy(keep) {
			at(f.name).After = n
		}
	}
	if a.grouped {
		for _, f := range a.families.list() {
			f.mu.Lock()
			n := len(f.groups)
			f.mu.Unlock()
			at(f.name).Before = n
		}
	} else {
		for f, n := range w.series {
			at(f.name).Before = n
		}
	}
	if err := a.states.Walk(ctx, func(prefix string) {
		n := at(familyOf(prefix))
		n.Before, n.After = n.Before+1, n.After+1
	}); err != nil {
		return nil, err
	}
	out := &WhatIf{}
	most := cardinality.NewTop(limit, func(a, b FamilyWhatIf) int {
		return cmp.Or(cmp.Compare(abs(b.After-b.Before), abs(a.After-a.Before)), cmp.Compare(b.Before, a.Before), strings.Compare(a.Name, b.Name))
	})
	for _, n := range of {
		if n.Before == 0 && n.After == 0 {
			continue
		}
		out.Names++
		out.Before += n.Before
		out.After += n.After
		most.Add(*n)
	}
	out.Families = most.Sorted()
	return out, nil
}

func abs(n int) int { return max(n, -n) }

// refusedBy reports whether agents may not send the family if series keep those labels.
func (f *family) refusedBy(keep identityLabels) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return keep&^labelTemplate == 0 && f.reserved.made
}

// regrouping counts the series of agents, and the groups that they would be. Agents of a
// group are counted together, so that only one group's descs are in memory.
type regrouping struct {
	keep identityLabels
	// series and after are by family.
	series, after map[*family]int
	// numbers has a number for each set of labels that series keep of an agent.
	numbers map[agent.Identity]int32
	agents  []regroupedAgent
}

// regroupedAgent is an agent with the numbers of its labels, of families with
// template_name and of those without.
type regroupedAgent struct {
	agent         *agentSeries
	with, without int32
}

func newRegrouping(keep identityLabels) *regrouping {
	return &regrouping{
		keep: keep, series: make(map[*family]int), after: make(map[*family]int), numbers: make(map[agent.Identity]int32),
	}
}

func (w *regrouping) addAgent(as *agentSeries) {
	as.mu.Lock()
	ident := as.ident
	as.mu.Unlock()
	w.agents = append(w.agents, regroupedAgent{as, w.number(ident, w.keep), w.number(ident, w.keep&^labelTemplate)})
}

// number returns the number of the labels that are kept of an agent.
func (w *regrouping) number(ident agent.Identity, keep identityLabels) int32 {
	var kept agent.Identity
	if keep&labelAgent != 0 {
		kept.AgentName = ident.AgentName
	}
	if keep&labelTemplate != 0 {
		kept.TemplateName = ident.TemplateName
	}
	if keep&labelUsername != 0 {
		kept.Username = ident.Username
	}
	if keep&labelWorkspace != 0 {
		kept.WorkspaceName = ident.WorkspaceName
	}
	n, made := w.numbers[kept]
	if !made {
		n = int32(len(w.numbers))
		w.numbers[kept] = n
	}
	return n
}

// count counts the series that are served now.
func (w *regrouping) count(ctx context.Context) error {
	slices.SortFunc(w.agents, func(a, b regroupedAgent) int {
		return cmp.Or(cmp.Compare(a.without, b.without), cmp.Compare(a.with, b.with))
	})
	var with, without descSet
	var descs []*desc
	for i, of := range w.agents {
		if i == 0 || w.agents[i-1].without != of.without {
			without.reset()
		}
		if i == 0 || w.agents[i-1].with != of.with {
			with.reset()
		}
		descs = of.agent.appendServed(descs[:0])
		for _, d := range descs {
			w.series[d.family]++
			group := &with
			if d.family.identity(w.keep) != w.keep {
				group = &without
			}
			if group.add(d) {
				w.after[d.family]++
			}
		}
		if i%walk.Step == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// appendServed appends the descs of the agent's series that are served.
func (as *agentSeries) appendServed(descs []*desc) []*desc {
	as.mu.Lock()
	defer as.mu.Unlock()
	if !as.served {
		return descs
	}
	for s := range as.all() {
		if !s.outdated() {
			descs = append(descs, s.desc)
		}
	}
	return descs
}

// descSet are the descs of a group.
type descSet map[*desc]struct{}

// reset makes the set empty. A map that was large takes long to clear.
func (s *descSet) reset() {
	if *s == nil || len(*s) > walk.Step {
		*s = make(descSet)
		return
	}
	clear(*s)
}

// add reports whether the desc is new in the set.
func (s descSet) add(d *desc) bool {
	n := len(s)
	s[d] = struct{}{}
	return len(s) > n
}
