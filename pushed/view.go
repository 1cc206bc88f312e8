package pushed

import (
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// view is what a scrape shows of all instances. It is never changed.
type view struct {
	families []*rendered
	// What the gauges of the service itself tell.
	instances, series, rowBytes, unreadable int
}

// claim is a name that is claimed; until is zero while its family is served.
type claim struct {
	typ   metrics.Type
	until time.Time
}

// WriteText writes all families in the text format 0.0.4, sorted by name, or
// nothing if another replica serves them. Of native histograms it has the classic
// buckets.
func (f *Families) WriteText(w io.Writer) error {
	for _, r := range f.served() {
		if _, err := w.Write(r.text); err != nil {
			return err
		}
	}
	return nil
}

// WriteProtobuf writes all families as delimited
// io.prometheus.client.MetricFamily messages, sorted by name, or nothing if
// another replica serves them.
func (f *Families) WriteProtobuf(w io.Writer) error {
	for _, r := range f.served() {
		if _, err := w.Write(r.protobuf); err != nil {
			return err
		}
	}
	return nil
}

// served returns what this replica serves now.
func (f *Families) served() []*rendered {
	if !f.serves() {
		return nil
	}
	return f.view.Load().families
}

// replaceLocked puts instances in the place of those with their ids, takes away
// those that are gone, and shows what follows.
func (f *Families) replaceLocked(now time.Time, next []*instance, gone []agent.Instance) {
	var changed []string
	for _, id := range gone {
		changed = append(changed, f.instances[id].names()...)
		delete(f.instances, id)
		delete(f.unreadable, id)
	}
	for _, i := range next {
		delete(f.unreadable, i.id)
		if old := f.instances[i.id]; old != nil {
			changed = append(changed, old.names()...)
		}
		changed = append(changed, i.names()...)
		i.live = i.isLive(now, f.opts.SeriesTTL)
		f.instances[i.id] = i
	}
	f.rebuildLocked(now, append(changed, f.settleLocked()...))
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// settleLocked decides which type each name has, and returns the names for which
// that is new. Where families collide, as one of them was displaced, the newest
// instance is right; those of the others are not shown.
func (f *Families) settleLocked() (changed []string) {
	types := make(map[string]metrics.Type, len(f.types))
	newestFirst := slices.SortedFunc(maps.Values(f.instances), func(a, b *instance) int { return compareAge(b, a) })
	for _, i := range newestFirst {
		for name, fam := range i.families {
			if _, held := types[name]; !held && len(collisions(types, name, fam.Type)) == 0 {
				types[name] = fam.Type
			}
		}
	}
	for name, was := range f.types {
		if is, held := types[name]; !held || is != was {
			delete(f.floors, name)
			changed = append(changed, name)
		}
	}
	for name := range types {
		if _, held := f.types[name]; !held {
			changed = append(changed, name)
		}
	}
	f.types = types
	return changed
}

// mortalNames are the families that change when their instance is gone: gauges,
// summaries for their quantiles, and what was refused of it.
func (i *instance) mortalNames() []string {
	var out []string
	for name, f := range i.families {
		if !cumulative(f.Type) || f.Type == metrics.Summary || slices.ContainsFunc(f.Series, func(s series) bool { return s.Refused }) {
			out = append(out, name)
		}
	}
	return out
}

// rebuildLocked merges and renders the named families anew, claims what is
// served, then serves it.
func (f *Families) rebuildLocked(now time.Time, names []string) {
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		merged := f.mergeLocked(name)
		if merged == nil {
			delete(f.rendered, name)
			continue
		}
		r, err := render(merged)
		if err != nil {
			// What was pushed was checked: a bug. The others are served.
			f.log.Error("pushed family left out", "error", err)
			f.metrics.renderErrors.Inc()
			delete(f.rendered, name)
			continue
		}
		f.rendered[name] = r
	}
	f.claimLocked(now)
	v := &view{families: slices.SortedFunc(maps.Values(f.rendered), func(a, b *rendered) int {
		return strings.Compare(a.name, b.name)
	}), unreadable: len(f.unreadable)}
	for _, i := range f.instances {
		v.instances++
		v.series += i.lines
		v.rowBytes += i.rowBytes
	}
	f.view.Store(v)
}

// claimLocked claims what is about to be served, and lets go of what was not
// for ClaimFor.
func (f *Families) claimLocked(now time.Time) {
	changed := false
	for name, c := range f.claimed {
		switch {
		case f.rendered[name] != nil:
		case c.until.IsZero():
			f.claimed[name] = claim{c.typ, now.Add(f.opts.ClaimFor)}
		case !now.Before(c.until):
			delete(f.claimed, name)
			changed = true
		}
	}
	for name, r := range f.rendered {
		c, ok := f.claimed[name]
		changed = changed || !ok || c.typ != r.typ
		f.claimed[name] = claim{typ: r.typ}
	}
	if !changed {
		return
	}
	names := make(map[string]metrics.Type, len(f.claimed))
	for name, c := range f.claimed {
		names[name] = c.typ
	}
	f.claims.HideFamilies(names)
}
