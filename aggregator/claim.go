package aggregator

import (
	"maps"
	"slices"

	"github.com/coder/agentstatsd/metrics"
)

// claims are names that others serve. It is replaced, never changed.
type claims map[string]struct{}

// Claim says which families others serve on the same endpoint, by name and
// type. Forwarded families that collide with one of them are not served by the
// scrapes that begin from now on, whether they are there already or come later,
// until another call claims them no more. They are held all the while. names is
// not kept.
//
// A family collides with one of its name, and with a histogram or summary x if
// its name is x_count, x_sum or x_bucket. The converse, x beside a claimed
// x_count, is a collision only if x is a histogram or summary, which agents
// cannot forward.
func (a *Aggregator) Claim(names map[string]metrics.Type) {
	c := make(claims, len(names))
	for name, t := range names {
		c[name] = struct{}{}
		if t == metrics.Histogram || t == metrics.Summary {
			for _, suffix := range [...]string{"_count", "_sum", "_bucket"} {
				c[name+suffix] = struct{}{}
			}
		}
	}
	if old := a.claims.Load(); old == nil || !maps.Equal(*old, c) {
		a.claims.Store(&c)
	}
}

// hides reports whether f is not served because of a claim.
func (c claims) hides(f *family) bool {
	if _, claimed := c[f.name]; !claimed {
		return false
	}
	return f.documented == nil || f.documented.Owner == metrics.OwnerAgents
}

// unclaimed returns the families of the list that are served. The list is not
// changed.
func (a *Aggregator) unclaimed(list []*family) []*family {
	c := a.claims.Load()
	if c == nil || !slices.ContainsFunc(list, c.hides) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), c.hides)
}

// hidden returns how many families are held and not served because of a claim.
func (a *Aggregator) hidden() int {
	list := a.families.list()
	return len(list) - len(a.unclaimed(list))
}
