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

	// refs counts descs, groups, and agents, which may count for a type without a
	// series. families.mu guards it.
	refs int

	// typeVersion counts the changes of typ. A series of an older version is not
	// served. The next report of its agent drops it. It is written under mu.
	typeVersion atomic.Uint32

	mu sync.Mutex
	// lines has the series of the newest type version. That of a documented family
	// is never replaced.
	lines *arena.Family
	// typ is the type that is reserved, or else that most agents send. A tie keeps the
	// one before. It and the next three fields are not used if the family is documented.
	typ agent.SampleType
	// reserved is true while coderd pushes a family that this one must not contradict.
	reserved reservation
	// typeCounts are the numbers of agents by the type that they send.
	typeCounts [agent.UnknownType + 1]int
	// series is the number of series of the newest type version.
	series int
	// groups are those of the newest type version, by prefix. orphans is the number
	// of groups without contributors.
	groups  map[string]*group
	orphans int

	// refreshing is held by the scrape that refreshes the groups.
	refreshing sync.Mutex
	// spare is swapped with dirty. refreshing guards it.
	spare []*group

	dirtyMu sync.Mutex
	dirty   []*group
}

// noType in place of a type in countType: the agent does not have the family. As the
// type of a family: no sample has it.
const noType = agent.UnknownType

// countType moves an agent from one type's count to another's, which may change the
// family's type. One agent does not change the type that others send, however many
// series it has.
func (f *family) countType(from, to agent.SampleType) {
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
	f.chooseTypeLocked()
}

// hasOneAgent reports whether only one agent has a family that is not documented.
func (f *family) hasOneAgent() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	agents := 0
	for _, n := range f.typeCounts[:noType] {
		agents += n
	}
	return agents == 1 && f.orphans == 0
}

// typesLocked returns the number of types that agents send.
func (f *family) typesLocked() int {
	n := 0
	for _, agents := range f.typeCounts[:noType] {
		if agents > 0 {
			n++
		}
	}
	return n
}

// chooseTypeLocked gives the family the type that is reserved, or else that most
// agents send. All orphaned groups together count as one agent.
func (f *family) chooseTypeLocked() {
	if newest := f.mostSentLocked(); newest != f.typ {
		f.setTypeLocked(newest)
	}
}

func (f *family) mostSentLocked() agent.SampleType {
	if f.reserved.made {
		return f.reserved.typ
	}
	most, newest := f.typeCounts[f.typ], f.typ
	if f.orphans > 0 {
		most = max(most, 1)
	}
	for t, agents := range f.typeCounts[:noType] {
		if agents > most {
			most, newest = agents, agent.SampleType(t)
		}
	}
	return newest
}

// setTypeLocked gives the family another type, and new lines.
func (f *family) setTypeLocked(newest agent.SampleType) {
	f.typ = newest
	if f.series == 0 && len(f.groups) == 0 {
		return
	}
	f.agg.metrics.typeChanges.Inc()
	f.series = 0
	f.lines = arena.NewFamily(&f.agg.generations, f.name)
	for _, g := range f.groups {
		f.agg.forgetGroupLocked(g)
	}
	f.groups, f.orphans = nil, 0
	f.typeVersion.Add(1)
	f.agg.typeChanges.Add(1)
}

// exposition returns the lines and the header that a scrape writes.
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
	if f.documented != nil && !slices.Contains(f.documented.Labels, labelTemplateName) {
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
	// reserved are the types that names have, as coderd pushes families. It is
	// replaced, never changed.
	reserved map[string]agent.SampleType
	// documented is the number of those that are there always.
	documented int
	// sorted is nil when it is out of date. It is replaced, never changed.
	sorted []*family
}

func newFamilies(a *Aggregator) *families {
	return &families{agg: a, byName: make(map[string]*family)}
}

// addDocumented adds a family that is served even without series. It is never
// released, and MaxFamilies does not count it.
func (t *families) addDocumented(name string) *family {
	t.mu.Lock()
	t.documented++
	t.mu.Unlock()
	f, _ := t.acquire(name)
	return f
}

// acquire returns the family called name and a new reference. It creates a missing
// one. It returns false if there are too many.
func (t *families) acquire(name string) (*family, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byName[name]
	if f == nil {
		if len(t.byName)-t.documented >= t.agg.opts.Load().MaxFamilies {
			return nil, false
		}
		// The name is cut from a key that is longer.
		name = strings.Clone(name)
		f = &family{name: name, lines: arena.NewFamily(&t.agg.generations, name), agg: t.agg}
		f.documented, _ = metrics.Documented(name)
		if typ, made := t.reserved[name]; made && f.documented == nil {
			f.reserved, f.typ = reservation{made, typ}, typ
		}
		t.byName[name] = f
		t.sorted = nil
	}
	f.refs++
	return f, true
}

// retain adds a reference to a family that has one.
func (t *families) retain(f *family) {
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

// get returns the family called name; nil if there is none.
func (t *families) get(name string) *family {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byName[name]
}

func (t *families) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byName)
}

// countUndocumented returns the number of families that MaxFamilies counts.
func (t *families) countUndocumented() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byName) - t.documented
}
