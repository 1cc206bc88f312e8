package family

import (
	"maps"
	"slices"
	"time"
)

// Limits bound the snapshots of instances. All are above 0. Refusals name the
// options that set them.
type Limits struct {
	// MaxFamilies of one snapshot.
	MaxFamilies int
	// MaxLabelValueBytes of one label, MaxLabelsBytes of all names and values of a
	// series.
	MaxLabelValueBytes, MaxLabelsBytes int
	// MaxSeries of one instance, MaxTotalSeries of all that are alive, counted as by
	// Set.Lines.
	MaxSeries, MaxTotalSeries int
	// MaxRowBytes of one instance, encoded. Admission.MaxRowLines follows from it.
	MaxRowBytes int
}

// Admission is what a snapshot of an instance is checked against, family by family.
type Admission struct {
	Policy Policy
	Limits Limits
	// Received is when the snapshot was received.
	Received time.Time
	// Old are the families that the instance has so far, all of Types. OldLive means
	// that its gauges were served without a break.
	Old     Set
	OldLive bool
	// Types are the types of all names.
	Types Types
	// Live are the names that other live instances have.
	Live map[string]bool
	// LiveLines is the number of lines of all other live instances.
	LiveLines int
	// MaxRowLines is the number of lines that the instance may have for the size of
	// its row.
	MaxRowLines int
}

// Admitted is what of a snapshot can be served.
type Admitted struct {
	// Families are those of the instance with the snapshot, Lines their number of
	// lines.
	Families Set
	Lines    int
	// Refused has the refusals of each family of the snapshot, in its order.
	Refused []Refusals
	// Displaced are the names of families of other instances that made way: no live
	// instance has them.
	Displaced map[string]bool
}

// admitter is one Admit.
type admitter struct {
	*Admission
	*Admitted
	// types are those of all names, with those that were admitted.
	types Types
	// live are the names that cannot be displaced: those of other live instances,
	// and those that were admitted.
	live map[string]bool
}

// Admit returns the families that the instance has with the snapshot, of which those
// that cannot be served are refused. Families that no live instance has are displaced
// by them. It changes neither the admission nor the snapshot, whose series the result
// shares.
//
// A name keeps its type as long as a live instance pushes it so. Known families
// come before new ones.
//
// What an instance counts under a name that it pushes in a refused way is kept, but
// not served.
func (a *Admission) Admit(snapshot Snapshot) *Admitted {
	out := &Admitted{Families: make(Set), Refused: make([]Refusals, len(snapshot)), Displaced: make(map[string]bool)}
	seen := make(map[string]bool, len(snapshot))
	for _, d := range snapshot {
		seen[d.Name] = true
	}
	for name, f := range a.Old {
		if f.Cumulative() {
			out.Families[name] = f.refuseAll(seen[name])
		}
	}
	out.Lines = out.Families.Lines()

	admitter := &admitter{a, out, make(Types, len(a.Types)), make(map[string]bool, len(a.Live))}
	maps.Copy(admitter.types, a.Types)
	maps.Copy(admitter.live, a.Live)
	clear(seen)
	known, unknown := make([]int, 0, len(snapshot)), []int(nil)
	for i, d := range snapshot {
		out.Refused[i] = d.Refused
		t, hasType := a.Types[d.Name]
		switch {
		case d.Name != "" && seen[d.Name] && i < a.Limits.MaxFamilies:
			out.Refused[i] = Refusals{refuse(reasonDuplicateFamily, "a second family of this name in the snapshot")}
		case d.Family == nil:
		case hasType && t == d.Family.Type:
			known = append(known, i)
		default:
			unknown = append(unknown, i)
		}
		seen[d.Name] = true
	}
	for _, i := range append(known, unknown...) {
		out.Refused[i] = admitter.admit(snapshot[i])
	}
	return out
}

// admit admits one family, with as many series as there is room for. It returns
// what it refuses. A family without series is absent.
func (a *admitter) admit(d *Decoded) Refusals {
	f := d.Family
	displaced := a.types.collisions(f.Name, f.Type)
	for _, name := range displaced {
		switch {
		case !a.live[name]:
		case name == f.Name:
			return Refusals{refuse(reasonTypeMismatch, "type %v, but it is served as %v", f.Type, a.types[name])}
		default:
			return Refusals{refuse(reasonNameCollision, "lines of it and of the %v %s would have the same names", a.types[name], name)}
		}
	}
	lines := a.Lines
	for _, name := range displaced {
		if gone := a.Families[name]; gone != nil {
			lines -= gone.lines()
		}
	}
	var before *Family
	if !slices.Contains(displaced, f.Name) {
		before = a.Old[f.Name]
		if kept := a.Families[f.Name]; kept != nil {
			lines -= kept.lines()
		}
	}
	refused := d.Refused
	after := a.Policy.succeed(before, f)
	if room := a.room(); lines+after.lines() > max(room.lines, a.Lines) {
		fits, n := f.fit(before, after, room.lines-lines)
		after = a.Policy.succeed(before, fits)
		refused = slices.Clone(refused)
		room.refusal.Count, room.refusal.Scope = n, OfSeries
		refused = append(refused, room.refusal)
	}
	if terms := a.Policy.invalidTerms(after); terms != nil {
		refused = append(slices.Clone(refused), terms)
	}
	if len(after.Series) == 0 {
		return refused // it takes nothing from what others push
	}
	after.setSince(a.Received.UnixNano(), before != nil && a.OldLive)
	lines += after.lines()
	for _, name := range displaced {
		delete(a.Families, name)
		delete(a.types, name)
		a.Displaced[name] = true
	}
	a.Families[f.Name], a.Lines = after, lines
	a.types[f.Name], a.live[f.Name] = f.Type, true
	return refused
}

// room is how many lines an instance may have, and why series beyond are refused.
type room struct {
	lines   int
	refusal *Refusal
}

func (a *Admission) room() room {
	all := a.Limits.MaxTotalSeries - a.LiveLines
	switch {
	case a.MaxRowLines < min(a.Limits.MaxSeries, all):
		return room{a.MaxRowLines, refuse(reasonTooManyBytes, "no room: at most %d bytes stored of one instance, compressed (--max-push-row-bytes)", a.Limits.MaxRowBytes)}
	case all < a.Limits.MaxSeries:
		return room{all, refuse(reasonTooManySeries, "no room: at most %d of all instances that are alive (--max-pushed-series-total)", a.Limits.MaxTotalSeries)}
	}
	return room{a.Limits.MaxSeries, refuse(reasonTooManySeries, "no room: at most %d of one instance (--max-pushed-series)", a.Limits.MaxSeries)}
}

// fit returns the family with as many of its series as fit into lines, and how
// many do not. after is what would become of it and of before, which may be nil.
// What before counted is kept in any case; its series come before new ones.
func (f *Family) fit(before, after *Family, lines int) (_ *Family, refused int) {
	known := make(map[string]int)
	if before != nil {
		for i := range before.Series {
			s := &before.Series[i]
			known[s.Labels] = 0
			if before.Cumulative() {
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
	out := &Family{Name: f.Name, Type: f.Type, Help: f.Help, Passed: f.Passed, refusedLabels: maps.Clone(f.refusedLabels)}
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
