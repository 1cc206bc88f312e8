package pushed

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// view is what a scrape shows of all instances. It is never changed.
type view struct {
	families []*metrics.Rendered
	// passed are the names of those of agents.
	passed map[string]bool
	// Values of the service's own gauges. live are the series of instances that are alive.
	instances, series, rowBytes, unreadable, live int
	// own is the number of instances but the totals. most* are what the one of them has that
	// has the most.
	own, mostSeries, mostFamilies, mostRowBytes int
}

// ownership is a name that this package owns. until is zero while its family is
// served.
type ownership struct {
	typ   metrics.Type
	until time.Time
}

// WriteText writes all families in the text format 0.0.4, sorted by name, or
// nothing if another replica serves them. Of native histograms it has the classic
// buckets.
func (f *Families) WriteText(w io.Writer) error {
	families, _ := f.Served()
	for _, r := range families {
		if _, err := w.Write(r.Text); err != nil {
			return err
		}
	}
	return nil
}

// WriteProtobuf writes all families as delimited
// io.prometheus.client.MetricFamily messages, sorted by name, or nothing if
// another replica serves them.
func (f *Families) WriteProtobuf(w io.Writer) error {
	families, _ := f.Served()
	for _, r := range families {
		if _, err := w.Write(r.Protobuf); err != nil {
			return err
		}
	}
	return nil
}

// Served returns the families that this replica serves now, sorted by name. Their names and
// types were reserved before. passed are those that Passed returns at that moment. Nothing
// of the result is ever changed.
func (f *Families) Served() (families []*metrics.Rendered, passed map[string]bool) {
	v := f.view.Load()
	if f.serves() {
		families = v.families
	}
	return families, v.passed
}

// Passed returns the names of the families that agents have, and that are served from
// pushes alone, by this replica or by another one. Nobody changes the result.
func (f *Families) Passed() map[string]bool { return f.view.Load().passed }

// replaceLocked replaces the instances with the ids of next, removes those of gone,
// and serves the result.
func (f *Families) replaceLocked(now time.Time, next []*instance, gone []agent.Instance) {
	var changed []string
	for _, id := range gone {
		changed = append(changed, f.instances[id].families.Names()...)
		delete(f.instances, id)
		delete(f.unreadable, id)
	}
	for _, i := range next {
		delete(f.unreadable, i.id)
		if old := f.instances[i.id]; old != nil {
			changed = append(changed, old.families.Names()...)
		}
		changed = append(changed, i.families.Names()...)
		i.live = i.isLive(now, f.opts.Load().SeriesTTL)
		f.instances[i.id] = i
	}
	f.rebuildLocked(now, append(changed, f.updateTypesLocked()...))
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// updateTypesLocked chooses the type of each name, and returns the names whose type
// changed. Where families collide, the newest instance's is chosen. Those of other
// instances are not served.
func (f *Families) updateTypesLocked() (changed []string) {
	newestFirst := slices.SortedFunc(maps.Values(f.instances), func(a, b *instance) int { return compareAge(b, a) })
	sets := make([]family.Set, len(newestFirst))
	for n, i := range newestFirst {
		sets[n] = i.families
	}
	types := family.ChooseTypes(sets)
	changed = f.types.Diff(types)
	for _, name := range changed {
		delete(f.floors, name)
	}
	f.types = types
	return changed
}

// mergeLocked makes one family of those of all instances; nil: nobody has it. A
// folded instance contributes nothing.
func (f *Families) mergeLocked(name string) *family.Family {
	if metrics.PassedThrough(name) && !f.passing {
		return nil
	}
	var all []family.Contribution
	for _, i := range f.instances {
		if fam := i.families[name]; fam != nil && f.types.Include(fam) && !i.folded {
			all = append(all, family.Contribution{Contributor: i.contributor(), Family: fam})
		}
	}
	merged, floors := f.policy.Merge(all, f.floors[name])
	if delete(f.floors, name); len(floors) > 0 {
		f.floors[name] = floors
	}
	return merged
}

// rebuildLocked merges and renders the named families, owns the names of those that
// it serves, then serves them.
func (f *Families) rebuildLocked(now time.Time, names []string) {
	names = append(names, f.updatePassingLocked()...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		merged := f.mergeLocked(name)
		delete(f.passed, name)
		if merged == nil {
			delete(f.rendered, name)
			continue
		}
		if merged.Passed || metrics.PassedThrough(name) {
			f.passed[name] = true
		}
		r, err := family.Render(merged)
		if err != nil {
			// What was pushed was checked: a bug. The others are served.
			f.unrendered.Log(context.Background(), f.log, slog.LevelError, "families", 1, "pushed family left out", "error", err)
			f.metrics.renderErrors.Inc()
			delete(f.rendered, name)
			continue
		}
		f.rendered[name] = r
	}
	f.updateOwnedLocked(now)
	v := &view{families: slices.SortedFunc(maps.Values(f.rendered), func(a, b *metrics.Rendered) int {
		return strings.Compare(a.Name, b.Name)
	}), passed: maps.Clone(f.passed), unreadable: len(f.unreadable)}
	for _, i := range f.instances {
		v.instances++
		v.series += i.lines
		v.rowBytes += i.rowBytes
		if i.live {
			v.live += i.lines
		}
		if i.id != (agent.Instance{}) {
			v.own++
			v.mostSeries, v.mostRowBytes = max(v.mostSeries, i.lines), max(v.mostRowBytes, i.rowBytes)
			v.mostFamilies = max(v.mostFamilies, len(i.families))
		}
	}
	f.view.Store(v)
}

// updateOwnedLocked owns the names of the families to be served. It releases those
// that were not served for OwnFor.
func (f *Families) updateOwnedLocked(now time.Time) {
	changed := false
	for name, c := range f.owned {
		switch {
		case f.rendered[name] != nil:
		case c.until.IsZero():
			f.owned[name] = ownership{c.typ, now.Add(f.opts.Load().OwnFor)}
		case !now.Before(c.until):
			delete(f.owned, name)
			changed = true
		}
	}
	for name, r := range f.rendered {
		c, ok := f.owned[name]
		changed = changed || !ok || c.typ != r.Type
		f.owned[name] = ownership{typ: r.Type}
	}
	if !changed {
		return
	}
	names := make(map[string]metrics.Type, len(f.owned))
	for name, c := range f.owned {
		names[name] = c.typ
	}
	f.reserver.ReserveFamilies(names)
}

// updatePassingLocked follows from which instances are alive whether what agents have is
// served from pushes, and returns the names of which that changes something.
func (f *Families) updatePassingLocked() (changed []string) {
	passing := false
	for _, i := range f.instances {
		passing = passing || i.live && i.passThrough
	}
	if passing == f.passing {
		return nil
	}
	f.passing = passing
	for _, i := range f.instances {
		for _, name := range i.families.Names() {
			if metrics.PassedThrough(name) {
				changed = append(changed, name)
			}
		}
	}
	return changed
}
