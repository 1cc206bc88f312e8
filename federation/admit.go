package federation

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// decodedFamily is one family of a push, or why it is refused.
type decodedFamily struct {
	name    string
	family  *family
	refused *refusal
}

// decode decodes and checks each family by itself. Those beyond the limit are
// refused as one.
func (f *Federation) decode(now time.Time, p *agent.Push) []decodedFamily {
	n := min(len(p.Families), f.opts.MaxFamilies)
	out := make([]decodedFamily, n)
	for i, raw := range p.Families[:n] {
		d := &out[i]
		d.name, d.family, d.refused = decodeFamily(raw, now)
	}
	if len(p.Families) > n {
		out = append(out, decodedFamily{
			refused: refuse(reasonTooManyFamilies, "%d families, the first %d are taken", len(p.Families), n),
		})
	}
	return out
}

// liveLocked returns the names that are held by an instance that is alive, other
// than the one except.
func (f *Federation) liveLocked(except agent.Instance) map[string]bool {
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

// collisions returns which held names cannot be served beside a family: its own
// with another type, and those that its lines, or it among theirs, would meet.
func collisions(held map[string]metrics.Type, name string, typ metrics.Type) []string {
	var out []string
	if t, ok := held[name]; ok && t != typ {
		out = append(out, name)
	}
	compound := func(t metrics.Type) bool { return t == metrics.Histogram || t == metrics.Summary }
	for _, suffix := range [...]string{"_bucket", "_count", "_sum"} {
		if _, ok := held[name+suffix]; ok && compound(typ) {
			out = append(out, name+suffix)
		}
		if base, ok := strings.CutSuffix(name, suffix); ok {
			if t, ok := held[base]; ok && compound(t) {
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
	// held are the types of all names, with those that were admitted.
	held map[string]metrics.Type
	// live are the names that cannot make way: those of others who are alive, and
	// those that were admitted.
	live map[string]bool
	// total is what all others hold.
	total int
	// displaced are the names that made way.
	displaced map[string]bool
}

// admitLocked fills next, the successor of old, with the families that can be
// served and with the refusals of the others. Held families make way for them if
// nobody who is alive has them.
//
// A name that is served keeps its type as long as an instance that is alive
// pushes it so; families that are held already come before new ones.
func (f *Federation) admitLocked(next, old *instance, decoded []decodedFamily) {
	if old != nil {
		old = old.only(f.types)
	}
	a := &admission{
		next: next, old: old, held: maps.Clone(f.types), live: f.liveLocked(next.id), displaced: make(map[string]bool),
	}
	next.families = make(map[string]*family)
	for id, i := range f.instances {
		if id != next.id {
			a.total += i.lines
		}
	}
	if old != nil {
		for name, fam := range old.families {
			if cumulative(fam.Type) {
				next.families[name] = fam
			}
		}
	}
	next.countLines()

	reasons := make([]*refusal, len(decoded))
	seen := make(map[string]bool, len(decoded))
	known, unknown := make([]int, 0, len(decoded)), []int(nil)
	for i, d := range decoded {
		reasons[i] = d.refused
		t, isHeld := a.held[d.name]
		switch {
		case d.name != "" && seen[d.name]:
			reasons[i] = refuse(reasonDuplicateFamily, "a second family of this name in the snapshot")
		case d.refused != nil:
		case isHeld && t == d.family.Type:
			known = append(known, i)
		default:
			unknown = append(unknown, i)
		}
		seen[d.name] = true
	}
	for _, i := range append(known, unknown...) {
		reasons[i] = f.admitFamily(a, decoded[i].family)
	}
	for i, r := range reasons {
		if r != nil {
			next.refused = append(next.refused, agent.PushRefusal{
				Name:    cut(strings.ToValidUTF8(decoded[i].name, "\uFFFD"), metrics.MaxNameBytes),
				Reason:  string(r.reason),
				Message: r.message,
			})
		}
	}
	f.outlastLocked(next, a.displaced)
}

// outlastLocked makes next newer than those whose families made way for its own,
// so that all replicas find it right: by the clock of a replica that took in the
// others it might not be.
func (f *Federation) outlastLocked(next *instance, displaced map[string]bool) {
	for name := range displaced {
		for _, i := range f.instances {
			if i.families[name] != nil && !next.updatedAt.After(i.updatedAt) {
				next.updatedAt = i.updatedAt.Add(1)
			}
		}
	}
}

// admitFamily takes one family into next, or returns why not.
func (f *Federation) admitFamily(a *admission, fam *family) *refusal {
	displaced := collisions(a.held, fam.Name, fam.Type)
	for _, name := range displaced {
		switch {
		case !a.live[name]:
		case name == fam.Name:
			return refuse(reasonTypeMismatch, "type %v, but it is served as %v", fam.Type, a.held[name])
		default:
			return refuse(reasonNameCollision, "lines of it and of the %v %s would have the same names", a.held[name], name)
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
	after := f.merges.succeed(before, fam)
	after.haveSince(a.next.updatedAt.UnixNano(), before != nil && a.old.live)
	lines += after.lines()
	if lines > a.next.lines {
		for _, limit := range []struct {
			of          string
			lines, most int
		}{
			{"this instance", lines, f.opts.MaxSeries},
			{"all instances", a.total + lines, f.opts.MaxTotalSeries},
		} {
			if limit.lines > limit.most {
				return refuse(reasonTooManySeries, "%d series of %s with this family, at most %d",
					limit.lines, limit.of, limit.most)
			}
		}
	}
	for _, name := range displaced {
		delete(a.next.families, name)
		delete(a.held, name)
		a.displaced[name] = true
	}
	a.next.families[fam.Name], a.next.lines = after, lines
	a.held[fam.Name], a.live[fam.Name] = fam.Type, true
	return nil
}
