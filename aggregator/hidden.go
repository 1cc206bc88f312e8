package aggregator

import (
	"maps"
	"slices"

	"github.com/coder/agentstatsd/metrics"
)

// nameSet is a set of families' names. It is replaced, never changed.
type nameSet map[string]struct{}

// HideFamilies sets the families, by name and type, that others serve on the same
// endpoint. From the next scrape on, forwarded families that collide with one of
// them are not served. This includes families that agents forward later. Their
// series stay in memory. The next call replaces the set. names is not kept.
//
// A family collides with one of its name. It also collides with a histogram or
// summary x if its name is x_count, x_sum or x_bucket. The converse, x beside a
// hidden x_count, is a collision only if x is a histogram or summary, which agents
// cannot forward.
func (a *Aggregator) HideFamilies(names map[string]metrics.Type) {
	c := make(nameSet, len(names))
	for name, t := range names {
		c[name] = struct{}{}
		if t == metrics.Histogram || t == metrics.Summary {
			for _, suffix := range [...]string{"_count", "_sum", "_bucket"} {
				c[name+suffix] = struct{}{}
			}
		}
	}
	if old := a.hiddenNames.Load(); old == nil || !maps.Equal(*old, c) {
		a.hiddenNames.Store(&c)
	}
}

// hides reports whether f is not served because its name is in the set.
func (c nameSet) hides(f *family) bool {
	if _, hidden := c[f.name]; !hidden {
		return false
	}
	return f.documented == nil || f.documented.Owner == metrics.OwnerAgents
}

// visible returns the families of the list that are served. It does not change the
// list.
func (a *Aggregator) visible(list []*family) []*family {
	c := a.hiddenNames.Load()
	if c == nil || !slices.ContainsFunc(list, c.hides) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), c.hides)
}

// countHidden returns the number of hidden families.
func (a *Aggregator) countHidden() int {
	list := a.families.list()
	return len(list) - len(a.visible(list))
}
