package aggregator

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// forwardedHelp of families that are not documented: agents send none.
const forwardedHelp = "Forwarded by workspace agents."

// family is one family of the exposition.
type family struct {
	name string
	// documented is nil if the family is not in the catalogue.
	documented *metrics.Family
	agg        *Aggregator

	// refs are descs, groups, and agents, which may count for a type without a series. It is guarded by families.mu.
	refs int

	// generation counts the changes of typ. A series of an older one is not
	// served, and is dropped by the next report of its agent. It is written
	// under mu.
	generation atomic.Uint32

	mu sync.Mutex
	// lines has the series of the newest generation. That of a documented family
	// is never replaced.
	lines *arena.Family
	// typ is what most agents say; of equally many the one before. It and the
	// next two fields are not used if the family is documented.
	typ agent.SampleType
	// typeCounts has the number of agents by the type that they give the family.
	typeCounts [agent.UnknownType + 1]int
	// series counts those of the newest generation.
	series int
	// groups of the newest generation by prefix, and how many of them have no
	// members.
	groups map[string]*group
	ghosts int

	// refreshing is held by the scrape that brings the groups up to date.
	refreshing sync.Mutex
	// spare is swapped with dirty. It is guarded by refreshing.
	spare []*group

	dirtyMu sync.Mutex
	dirty   []*group
}

// noType in place of a type in moveAgent: the agent does not have the family.
const noType = agent.UnknownType

// moveAgent counts an agent that gave the family one type for another one, which
// may change the family's type. A family that is not contested does not change
// its type for one agent, however many series that has.
func (f *family) moveAgent(from, to agent.SampleType) {
	if f.documented != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.typesLocked()
	f.typeCounts[from]--
	f.typeCounts[to]++
	f.typeCounts[noType] = 0
	if before == 1 && f.typesLocked() == 2 {
		f.agg.metrics.conflicts.Inc()
	}
	f.electTypeLocked()
}

// hasOneAgent tells whether one agent alone keeps a family that is not documented.
func (f *family) hasOneAgent() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	agents := 0
	for _, n := range f.typeCounts[:noType] {
		agents += n
	}
	return agents == 1 && f.ghosts == 0
}

// typesLocked returns how many types agents give the family.
func (f *family) typesLocked() int {
	n := 0
	for _, agents := range f.typeCounts[:noType] {
		if agents > 0 {
			n++
		}
	}
	return n
}

// electTypeLocked gives the family the type that most agents say. Sums that
// outlived their agents count as one agent.
func (f *family) electTypeLocked() {
	most, newest := f.typeCounts[f.typ], f.typ
	if f.ghosts > 0 {
		most = max(most, 1)
	}
	for t, agents := range f.typeCounts[:noType] {
		if agents > most {
			most, newest = agents, agent.SampleType(t)
		}
	}
	if newest == f.typ {
		return
	}
	f.typ = newest
	if f.series == 0 && len(f.groups) == 0 {
		return
	}
	f.agg.metrics.typeChanges.Inc()
	f.series = 0
	f.lines = arena.NewFamily(&f.agg.generations, f.name)
	for _, g := range f.groups {
		f.agg.abandonLocked(g)
	}
	f.groups, f.ghosts = nil, 0
	f.generation.Add(1)
	f.agg.typeChanges.Add(1)
}

// exposition returns what a scrape writes of the family.
func (f *family) exposition() (*arena.Family, arena.Header) {
	if d := f.documented; d != nil {
		return f.lines, arena.Header{Help: d.Help, Type: d.Type, Always: true}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lines, arena.Header{Help: forwardedHelp, Type: sampleType(f.typ)}
}

// groupingLocked returns how the values of several agents become one.
func (f *family) groupingLocked() metrics.Grouping {
	switch {
	case f.documented != nil:
		return f.documented.Group
	case f.typ == agent.Counter:
		return metrics.GroupIncrements
	}
	return metrics.GroupSum
}

// identity returns which identity labels of keep the family's series have.
func (f *family) identity(keep identityLabels) identityLabels {
	if f.documented != nil && !slices.Contains(f.documented.Labels, identityNames[1]) {
		return keep &^ labelTemplate
	}
	return keep
}

// sampleType returns t as a family's type.
func sampleType(t agent.SampleType) metrics.Type {
	switch t {
	case agent.Counter:
		return metrics.Counter
	case agent.Gauge:
		return metrics.Gauge
	default:
		return metrics.Untyped
	}
}

// families has all families by name.
type families struct {
	agg *Aggregator

	mu     sync.Mutex
	byName map[string]*family
	// documented is the number of those that are there always.
	documented int
	// sorted is nil when it is out of date. It is replaced, never changed.
	sorted []*family
}

func newFamilies(a *Aggregator) *families {
	return &families{agg: a, byName: make(map[string]*family)}
}

// addDocumented makes a family that is served even without series. It is never
// released, and MaxFamilies does not count it.
func (t *families) addDocumented(name string) *family {
	t.mu.Lock()
	t.documented++
	t.mu.Unlock()
	f, _ := t.acquire(name)
	return f
}

// acquire returns the family called name, which is made if need be, to be
// released; false if there are too many.
func (t *families) acquire(name string) (*family, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byName[name]
	if f == nil {
		if len(t.byName)-t.documented >= t.agg.opts.MaxFamilies {
			return nil, false
		}
		// The name is cut from a key that is longer.
		name = strings.Clone(name)
		f = &family{name: name, lines: arena.NewFamily(&t.agg.generations, name), agg: t.agg}
		f.documented, _ = metrics.Documented(name)
		t.byName[name] = f
		t.sorted = nil
	}
	f.refs++
	return f, true
}

// hold is acquire for a family that is held already.
func (t *families) hold(f *family) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.refs++
}

func (t *families) release(f *family) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.refs--
	if f.refs == 0 {
		delete(t.byName, f.name)
		t.sorted = nil
	}
}

// list returns the families sorted by name. It must not be changed.
func (t *families) list() []*family {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sorted == nil {
		t.sorted = make([]*family, 0, len(t.byName))
		for _, f := range t.byName {
			t.sorted = append(t.sorted, f)
		}
		slices.SortFunc(t.sorted, func(f, g *family) int { return strings.Compare(f.name, g.name) })
	}
	return t.sorted
}

func (t *families) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byName)
}
