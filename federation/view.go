package federation

import (
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/metrics"
)

// view is what a scrape shows. It is never changed.
type view struct {
	families []*rendered
	// What the gauges of the federation itself tell.
	instances, series, rowBytes int
}

// claim is a name that is claimed; until is zero while its family is served.
type claim struct {
	typ   metrics.Type
	until time.Time
}

// WriteText writes all families in the text format 0.0.4, sorted by name. Of
// native histograms it has the classic buckets.
func (f *Federation) WriteText(w io.Writer) error {
	for _, r := range f.view.Load().families {
		if _, err := w.Write(r.text); err != nil {
			return err
		}
	}
	return nil
}

// WriteProtobuf writes all families as delimited
// io.prometheus.client.MetricFamily messages, sorted by name.
func (f *Federation) WriteProtobuf(w io.Writer) error {
	for _, r := range f.view.Load().families {
		if _, err := w.Write(r.protobuf); err != nil {
			return err
		}
	}
	return nil
}

// replaceLocked puts next in the place of old, which may be nil, and takes the
// displaced families from everybody else.
func (f *Federation) replaceLocked(now time.Time, old, next *instance, displaced []string) {
	next.live = next.isLive(now, f.opts.SeriesTTL)
	changed := slices.Concat(displaced, slices.Collect(maps.Keys(next.families)))
	if old != nil {
		changed = append(changed, slices.Collect(maps.Keys(old.families))...)
	}
	for _, name := range displaced {
		delete(f.floors, name)
		for id, i := range f.instances {
			if i.families[name] != nil {
				f.instances[id] = i.without(name)
			}
		}
	}
	f.instances[next.id] = next
	f.rebuildLocked(now, changed)
}

// adoptLocked takes in what was stored. Where families collide, as one of them
// was displaced, the newest instance is right.
func (f *Federation) adoptLocked(now time.Time, loaded []*instance) {
	slices.SortFunc(loaded, func(a, b *instance) int { return compareAge(b, a) })
	held := make(map[string]holder)
	for _, i := range loaded {
		for _, name := range slices.Sorted(maps.Keys(i.families)) {
			if len(collisions(held, name, i.families[name].Type)) > 0 {
				i = i.without(name)
				continue
			}
			held[name] = holder{typ: i.families[name].Type}
		}
		i.live = i.isLive(now, f.opts.SeriesTTL)
		f.instances[i.id] = i
	}
	f.rebuildLocked(now, slices.Collect(maps.Keys(held)))
}

// mortalNames are the families with values that end with their instance: gauges,
// and summaries for their quantiles.
func (i *instance) mortalNames() []string {
	var out []string
	for name, f := range i.families {
		if !cumulative(f.Type) || f.Type == metrics.Summary {
			out = append(out, name)
		}
	}
	return out
}

// rebuildLocked merges and renders the named families anew, claims what is
// served, then serves it.
func (f *Federation) rebuildLocked(now time.Time, names []string) {
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		merged := f.mergeLocked(name)
		if merged == nil {
			delete(f.rendered, name)
			delete(f.sticky, name)
			delete(f.floors, name)
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
	})}
	for _, i := range f.instances {
		v.instances++
		v.series += i.lines
		v.rowBytes += i.rowBytes
	}
	f.view.Store(v)
}

// claimLocked claims what is about to be served, and lets go of what was not
// for ClaimFor.
func (f *Federation) claimLocked(now time.Time) {
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
	f.claims.Claim(names)
}
