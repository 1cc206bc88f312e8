package family

import (
	"strings"

	"github.com/coder/agentstatsd/metrics"
)

// Types are the types of names. They keep the families of several instances one valid
// exposition: one type for a name, and no two lines of one series.
type Types map[string]metrics.Type

// ChooseTypes returns the type of each name of the sets. Where families collide,
// that of the first set is chosen.
func ChooseTypes(sets []Set) Types {
	t := make(Types)
	for _, s := range sets {
		for name, f := range s {
			if _, known := t[name]; !known && len(t.collisions(name, f.Type)) == 0 {
				t[name] = f.Type
			}
		}
	}
	return t
}

// Include reports whether the family has the type that its name has.
func (t Types) Include(f *Family) bool {
	typ, known := t[f.Name]
	return known && typ == f.Type
}

// Diff returns the names that have another type in next, or none, or did not have
// one, in any order.
func (t Types) Diff(next Types) (changed []string) {
	for name, was := range t {
		if is, known := next[name]; !known || is != was {
			changed = append(changed, name)
		}
	}
	for name := range next {
		if _, known := t[name]; !known {
			changed = append(changed, name)
		}
	}
	return changed
}

// collisions returns which names cannot be served beside a family: its own name
// with another type, and names of equal lines.
func (t Types) collisions(name string, typ metrics.Type) []string {
	var out []string
	if is, ok := t[name]; ok && is != typ {
		out = append(out, name)
	}
	compound := func(t metrics.Type) bool { return t == metrics.Histogram || t == metrics.Summary }
	for _, suffix := range [...]string{"_bucket", "_count", "_sum"} {
		if _, ok := t[name+suffix]; ok && compound(typ) {
			out = append(out, name+suffix)
		}
		if base, ok := strings.CutSuffix(name, suffix); ok {
			if is, ok := t[base]; ok && compound(is) {
				out = append(out, base)
			}
		}
	}
	return out
}
