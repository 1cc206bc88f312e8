package aggregator

import (
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

const (
	// maxFamilies that agents may have made at a time. A Coder agent sends some
	// 30; each costs 1 KB beside its series.
	maxFamilies = 20_000

	// forwardedHelp of families that are not documented: agents send none.
	forwardedHelp = "Forwarded by workspace agents."
)

// family is one family of the exposition.
type family struct {
	name string
	// documented is nil if the family is not in the catalogue.
	documented *metrics.Family
	lines      *arena.Family
	conflicts  prometheus.Counter

	// refs are descs and groups. It is guarded by families.mu.
	refs int

	mu sync.Mutex
	// votes has the number of served series by the type that agents give them.
	votes [3]int
	// groups, by prefix, and the type for which their lines were made.
	groups    map[string]*group
	groupType metrics.Type

	// refreshing is held by the scrape that brings the groups up to date.
	refreshing sync.Mutex
	// spare is swapped with dirty. It is guarded by refreshing.
	spare []*group

	dirtyMu sync.Mutex
	dirty   []*group
}

// vote counts n served series of type t in, or out if n is negative.
func (f *family) vote(t agent.SampleType, n int) {
	if f.documented != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.typesLocked()
	f.votes[t] += n
	if before == 1 && f.typesLocked() == 2 {
		f.conflicts.Inc()
	}
}

// typesLocked returns how many types the series have.
func (f *family) typesLocked() int {
	n := 0
	for _, v := range f.votes {
		if v > 0 {
			n++
		}
	}
	return n
}

// typeLocked returns the type to serve: the documented one, else the one that
// the series agree on.
func (f *family) typeLocked() metrics.Type {
	switch {
	case f.documented != nil:
		return f.documented.Type
	case f.typesLocked() > 1:
		return metrics.Untyped
	case f.votes[agent.Counter] > 0:
		return metrics.Counter
	case f.votes[agent.Gauge] > 0:
		return metrics.Gauge
	case f.votes[agent.Untyped] == 0 && len(f.groups) > 0:
		// All that is left are the sums of counters.
		return metrics.Counter
	}
	return metrics.Untyped
}

func (f *family) header() arena.Header {
	if d := f.documented; d != nil {
		return arena.Header{Help: d.Help, Type: d.Type, Always: true}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return arena.Header{Help: forwardedHelp, Type: f.typeLocked()}
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
	clock     *arena.Clock
	conflicts prometheus.Counter

	mu     sync.Mutex
	byName map[string]*family
	// sorted is nil when it is out of date. It is replaced, never changed.
	sorted []*family
}

func newFamilies() *families {
	return &families{byName: make(map[string]*family)}
}

// addDocumented makes the families that are served even without series. They
// are never released.
func (t *families) addDocumented() {
	for _, f := range metrics.Catalogue() {
		if f.Owner == metrics.OwnerAgents || slices.Contains(statsNames[:], f.Name) {
			t.acquire(f.Name)
		}
	}
}

// acquire returns the family called name, which is made if need be, to be
// released; false if there are too many.
func (t *families) acquire(name string) (*family, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.byName[name]
	if f == nil {
		if len(t.byName) >= maxFamilies {
			return nil, false
		}
		// The name is cut from a key that is longer.
		name = strings.Clone(name)
		f = &family{name: name, lines: arena.NewFamily(t.clock, name), conflicts: t.conflicts}
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
