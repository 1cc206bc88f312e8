package federation

import (
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

// holder is who has a name.
type holder struct {
	typ metrics.Type
	// live: an instance that is alive has it.
	live bool
}

// namesLocked returns all names that are held. Those that only the instance
// except has do not count as alive.
func (f *Federation) namesLocked(except agent.Instance) map[string]holder {
	names := make(map[string]holder, len(f.rendered))
	for _, i := range f.instances {
		for name, fam := range i.families {
			h := names[name]
			names[name] = holder{fam.Type, h.live || i.live && i.id != except}
		}
	}
	return names
}

// collisions returns which held names cannot be served beside a family: its own
// with another type, and those that its lines, or it among theirs, would meet.
func collisions(held map[string]holder, name string, typ metrics.Type) []string {
	var out []string
	if h, ok := held[name]; ok && h.typ != typ {
		out = append(out, name)
	}
	compound := func(t metrics.Type) bool { return t == metrics.Histogram || t == metrics.Summary }
	for _, suffix := range [...]string{"_bucket", "_count", "_sum"} {
		if _, ok := held[name+suffix]; ok && compound(typ) {
			out = append(out, name+suffix)
		}
		if base, ok := strings.CutSuffix(name, suffix); ok {
			if h, ok := held[base]; ok && compound(h.typ) {
				out = append(out, base)
			}
		}
	}
	return out
}

// admitLocked fills next, the successor of old, with the families that can be
// served and with the refusals of the others. It returns the names of held
// families that make way because nobody who is alive has them.
//
// A name that is served keeps its type as long as an instance that is alive
// pushes it so; families that are held already come before new ones.
func (f *Federation) admitLocked(next, old *instance, decoded []decodedFamily) (displaced []string) {
	held := f.namesLocked(next.id)
	next.families = make(map[string]*family)
	total := 0
	for _, i := range f.instances {
		total += i.lines
	}
	if old != nil {
		for name, fam := range old.families {
			if cumulative(fam.Type) {
				next.families[name] = fam
			}
		}
		total -= old.lines
	}
	next.countLines()

	reasons := make([]*refusal, len(decoded))
	seen := make(map[string]bool, len(decoded))
	known, unknown := make([]int, 0, len(decoded)), []int(nil)
	for i, d := range decoded {
		reasons[i] = d.refused
		h, isHeld := held[d.name]
		switch {
		case d.name != "" && seen[d.name]:
			reasons[i] = refuse(reasonDuplicateFamily, "a second family of this name in the snapshot")
		case d.refused != nil:
		case isHeld && h.typ == d.family.Type:
			known = append(known, i)
		default:
			unknown = append(unknown, i)
		}
		seen[d.name] = true
	}
	for _, i := range append(known, unknown...) {
		var gone []string
		if gone, reasons[i] = f.admitFamily(next, old, held, decoded[i].family, total); reasons[i] == nil {
			displaced = append(displaced, gone...)
		}
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
	return displaced
}

// admitFamily takes one family into next, or returns why not. total is what
// all other instances hold.
func (f *Federation) admitFamily(next, old *instance, held map[string]holder, fam *family, total int) (
	displaced []string, _ *refusal,
) {
	displaced = collisions(held, fam.Name, fam.Type)
	for _, name := range displaced {
		switch h := held[name]; {
		case !h.live:
		case name == fam.Name:
			return nil, refuse(reasonTypeMismatch, "type %v, but it is served as %v", fam.Type, h.typ)
		default:
			return nil, refuse(reasonNameCollision, "lines of it and of the %v %s would have the same names", h.typ, name)
		}
	}
	lines := next.lines
	for _, name := range displaced {
		if gone := next.families[name]; gone != nil {
			lines -= gone.lines()
		}
	}
	var before *family
	if !slices.Contains(displaced, fam.Name) && old != nil {
		before = old.families[fam.Name]
		if kept := next.families[fam.Name]; kept != nil {
			lines -= kept.lines()
		}
	}
	after := succeed(before, fam)
	lines += after.lines()
	if lines > next.lines {
		for _, limit := range []struct {
			of          string
			lines, most int
		}{
			{"this instance", lines, f.opts.MaxSeries},
			{"all instances", total + lines, f.opts.MaxTotalSeries},
		} {
			if limit.lines > limit.most {
				return nil, refuse(reasonTooManySeries, "%d series of %s with this family, at most %d",
					limit.lines, limit.of, limit.most)
			}
		}
	}
	for _, name := range displaced {
		delete(next.families, name)
		delete(held, name)
	}
	next.families[fam.Name], next.lines = after, lines
	held[fam.Name] = holder{fam.Type, true}
	return displaced, nil
}
