package pushed

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// decode decodes and checks each family by itself. Of those beyond MaxFamilies
// only the names are read: each is refused, as many as the limit by name, and the
// rest together with the first of them.
func (f *Families) decode(now time.Time, p *agent.Push) []*decodedFamily {
	n := min(len(p.Families), f.opts.MaxFamilies)
	limits := labelLimits{f.opts.MaxLabelValueBytes, f.opts.MaxLabelsBytes}
	out := make([]*decodedFamily, len(p.Families))
	for i, raw := range p.Families[:n] {
		out[i] = decodeFamily(raw, limits, now)
	}
	if n == len(p.Families) {
		return out
	}
	beyond := refuse(reasonTooManyFamilies, "%d families, the first %d are stored (--max-pushed-families)", len(p.Families), n)
	one := refusals{beyond}
	for i, raw := range p.Families[n:] {
		d := &decodedFamily{name: nameOf(raw)}
		switch rest := len(p.Families) - n - i; {
		case i < n:
			d.refused = one
		case i == n && rest > 1:
			d.refused = refusals{{
				reason: beyond.reason, message: fmt.Sprintf("%s; %d after this one are refused too", beyond.message, rest-1), count: rest,
			}}
		case i == n:
			d.refused = one
		}
		out[n+i] = d
	}
	return out
}

// liveNamesLocked returns the names that a live instance has, other than the one
// except.
func (f *Families) liveNamesLocked(except agent.Instance) map[string]bool {
	live := make(map[string]bool, len(f.types))
	for _, i := range f.instances {
		if !i.live || i.id == except {
			continue
		}
		for name, fam := range i.families {
			if fam.isOf(f.types) {
				live[name] = true
			}
		}
	}
	return live
}

// collisions returns which known names cannot be served beside a family: its own
// name with another type, and names of equal lines.
func collisions(known map[string]metrics.Type, name string, typ metrics.Type) []string {
	var out []string
	if t, ok := known[name]; ok && t != typ {
		out = append(out, name)
	}
	compound := func(t metrics.Type) bool { return t == metrics.Histogram || t == metrics.Summary }
	for _, suffix := range [...]string{"_bucket", "_count", "_sum"} {
		if _, ok := known[name+suffix]; ok && compound(typ) {
			out = append(out, name+suffix)
		}
		if base, ok := strings.CutSuffix(name, suffix); ok {
			if t, ok := known[base]; ok && compound(t) {
				out = append(out, base)
			}
		}
	}
	return out
}

// admission is what a snapshot of an instance is checked against, family by
// family.
type admission struct {
	// next is what becomes of old, which may be nil.
	next, old *instance
	// types are the types of all names, with those that were admitted.
	types map[string]metrics.Type
	// live are the names that cannot be displaced: those of other live instances,
	// and those that were admitted.
	live map[string]bool
	// alive is the number of lines of all other live instances.
	alive int
	// most is the number of lines that next may have for the size of its row.
	most int
	// displaced are the names that made way.
	displaced map[string]bool
}

// admitLocked fills next, the successor of old, with the families that can be
// served. It returns the refusals of the others. Families that no live instance has
// are displaced by them.
//
// A name keeps its type as long as a live instance pushes it so. Known families
// come before new ones.
//
// What an instance counts under a name that it pushes in a refused way is kept, but
// not served.
func (f *Families) admitLocked(next, old *instance, decoded []*decodedFamily, most int) (refused []refusals) {
	if old != nil {
		old = old.ofTypes(f.types)
	}
	a := &admission{
		next: next, old: old, types: maps.Clone(f.types), live: f.liveNamesLocked(next.id), displaced: make(map[string]bool),
		most: most,
	}
	next.families = make(map[string]*family)
	for id, i := range f.instances {
		if id != next.id && i.live {
			a.alive += i.lines
		}
	}
	seen := make(map[string]bool, len(decoded))
	for _, d := range decoded {
		seen[d.name] = true
	}
	if old != nil {
		for name, fam := range old.families {
			if cumulative(fam.Type) {
				next.families[name] = fam.refuseAll(seen[name])
			}
		}
	}
	next.countLines()

	refused = make([]refusals, len(decoded))
	clear(seen)
	known, unknown := make([]int, 0, len(decoded)), []int(nil)
	for i, d := range decoded {
		refused[i] = d.refused
		t, isHeld := a.types[d.name]
		switch {
		case d.name != "" && seen[d.name] && i < f.opts.MaxFamilies:
			refused[i] = refusals{refuse(reasonDuplicateFamily, "a second family of this name in the snapshot")}
		case d.family == nil:
		case isHeld && t == d.family.Type:
			known = append(known, i)
		default:
			unknown = append(unknown, i)
		}
		seen[d.name] = true
	}
	for _, i := range append(known, unknown...) {
		refused[i] = f.admitFamily(a, decoded[i])
	}
	f.makeNewestLocked(next, a.displaced)
	return refused
}

// makeNewestLocked makes next newer than the instances whose families it displaces,
// so that all replicas prefer it. It may not be, by the clock of the replica that
// stored them.
func (f *Families) makeNewestLocked(next *instance, displaced map[string]bool) {
	for name := range displaced {
		for _, i := range f.instances {
			if i.families[name] != nil && !next.updatedAt.After(i.updatedAt) {
				next.updatedAt = i.updatedAt.Add(1)
			}
		}
	}
}

// admitFamily admits one family into next, with as many series as there is room
// for. It returns what it refuses. A family without series is absent.
func (f *Families) admitFamily(a *admission, d *decodedFamily) refusals {
	fam := d.family
	displaced := collisions(a.types, fam.Name, fam.Type)
	for _, name := range displaced {
		switch {
		case !a.live[name]:
		case name == fam.Name:
			return refusals{refuse(reasonTypeMismatch, "type %v, but it is served as %v", fam.Type, a.types[name])}
		default:
			return refusals{refuse(reasonNameCollision, "lines of it and of the %v %s would have the same names", a.types[name], name)}
		}
	}
	lines := a.next.lines
	for _, name := range displaced {
		if gone := a.next.families[name]; gone != nil {
			lines -= gone.lines()
		}
	}
	var before *family
	if !slices.Contains(displaced, fam.Name) && a.old != nil {
		before = a.old.families[fam.Name]
		if kept := a.next.families[fam.Name]; kept != nil {
			lines -= kept.lines()
		}
	}
	refused := d.refused
	after := f.merges.succeed(before, fam)
	if room := f.room(a); lines+after.lines() > max(room.lines, a.next.lines) {
		fits, n := fam.fit(before, after, room.lines-lines)
		after = f.merges.succeed(before, fits)
		refused = slices.Clone(refused)
		room.refusal.count, room.refusal.of = n, ofSeries
		refused = append(refused, room.refusal)
	}
	if terms := f.merges.invalidTerms(after); terms != nil {
		refused = append(slices.Clone(refused), terms)
	}
	if len(after.Series) == 0 {
		return refused // it takes nothing from what others push
	}
	after.setSince(a.next.updatedAt.UnixNano(), before != nil && a.old.live)
	lines += after.lines()
	for _, name := range displaced {
		delete(a.next.families, name)
		delete(a.types, name)
		a.displaced[name] = true
	}
	a.next.families[fam.Name], a.next.lines = after, lines
	a.types[fam.Name], a.live[fam.Name] = fam.Type, true
	return refused
}

// room is how many lines an instance may have, and why series beyond are refused.
type room struct {
	lines   int
	refusal *refusal
}

func (f *Families) room(a *admission) room {
	if a.most < min(f.opts.MaxSeries, f.opts.MaxTotalSeries-a.alive) {
		return room{a.most, refuse(reasonTooManyBytes, "no room: at most %d bytes stored of one instance, compressed (--max-push-row-bytes)", f.opts.MaxRowBytes)}
	}
	if all := f.opts.MaxTotalSeries - a.alive; all < f.opts.MaxSeries {
		return room{all, refuse(reasonTooManySeries, "no room: at most %d of all instances that are alive (--max-pushed-series-total)", f.opts.MaxTotalSeries)}
	}
	return room{f.opts.MaxSeries, refuse(reasonTooManySeries, "no room: at most %d of one instance (--max-pushed-series)", f.opts.MaxSeries)}
}

// fit returns the family with as many of its series as fit into lines, and how
// many do not. after is what would become of it and of before, which may be nil.
// What before counted is kept in any case; its series come before new ones.
func (f *family) fit(before, after *family, lines int) (_ *family, refused int) {
	known := make(map[string]int)
	if before != nil {
		for i := range before.Series {
			s := &before.Series[i]
			known[s.Labels] = 0
			if cumulative(before.Type) {
				known[s.Labels] = s.lines()
				lines -= s.lines()
			}
		}
	}
	fitting := make(map[string]bool, len(f.Series))
	for i := range f.Series {
		fitting[f.Series[i].Labels] = false
	}
	for _, isKnown := range [...]bool{true, false} {
		for i := range after.Series {
			s := &after.Series[i]
			was, ok := known[s.Labels]
			if _, pushed := fitting[s.Labels]; !pushed || ok != isKnown {
				continue
			}
			if more := s.lines() - was; more <= max(lines, 0) {
				lines -= more
				fitting[s.Labels] = true
			}
		}
	}
	out := &family{Name: f.Name, Type: f.Type, Help: f.Help, refusedLabels: maps.Clone(f.refusedLabels)}
	for i := range f.Series {
		if fitting[f.Series[i].Labels] {
			out.Series = append(out.Series, f.Series[i])
			continue
		}
		out.refuse(f.Series[i].Labels)
		refused++
	}
	return out, refused
}
