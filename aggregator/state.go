package aggregator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// stateNames are the families that SetState fills.
var stateNames = [...]string{
	"coderd_agents_apps",
	"coderd_agents_connection_latencies_seconds",
	"coderd_agents_connections",
	"coderd_agents_up",
}

// infoFamily is one of the service's own, which an option asks for.
var infoFamily = &metrics.Family{
	Name: "agentstatsd_workspace_info", Type: metrics.Gauge, Owner: metrics.OwnerService,
	Labels: []string{"organization_name", "template_name", "template_version", "username", "workspace_name"},
	Help:   "1 for each registered workspace, with its organization, its template and the version of that.",
}

// states has the series that the service computes of agents and workspaces. A label
// set has one line, also if several keys have it.
type states struct {
	families map[string]*family
	scratch  sync.Pool

	// mu guards the fields below it. It is also held while a scrape begins. So a
	// scrape begins before a key's series are replaced, or after.
	mu       sync.Mutex
	byKey    map[agent.SeriesKey][]*stateLine
	byPrefix map[string]*stateLine
}

// stateLine is one label set. The fields below prefix are guarded by states.mu.
type stateLine struct {
	prefix string
	block  *arena.Block
	slot   uint32
	// owner is the key whose value the line has.
	owner agent.SeriesKey
	// waiting are the other keys that have the label set, in the order in which
	// they get the line.
	waiting []stateValue
}

type stateValue struct {
	key   agent.SeriesKey
	value float64
}

// rendered are series with their prefixes, which stand one after the other.
type rendered struct {
	text   []byte
	series []renderedSeries
}

type renderedSeries struct {
	family *family
	end    int // of the prefix in the text
	key    metrics.ShardKey
	value  float64
}

func newStates(fams *families, info bool) *states {
	t := &states{
		families: make(map[string]*family, len(stateNames)),
		scratch:  sync.Pool{New: func() any { return &rendered{} }},
		byKey:    make(map[agent.SeriesKey][]*stateLine),
		byPrefix: make(map[string]*stateLine),
	}
	for _, name := range stateNames {
		t.families[name] = fams.addDocumented(name)
	}
	if info {
		f := fams.addDocumented(infoFamily.Name)
		f.documented = infoFamily
		t.families[f.name] = f
	}
	return t
}

// SetState replaces the series of the key, an agent or a workspace. A scrape that
// begins later shows none of the removed series, and all of the new ones. Series
// with the labels of an old one keep their line, which is cheap.
//
// The series are of the families coderd_agents_*, and with Options.WorkspaceInfo of
// agentstatsd_workspace_info. If one is not, the error names its
// family, and the others are taken. A series with the labels of an earlier one in the
// list is ignored. If several keys have a series with equal labels, the first key's
// value is served until that key has it no more. The series do not expire and are not
// grouped. They count as series, but none is refused: the caller bounds them. series
// is not kept.
func (a *Aggregator) SetState(key agent.SeriesKey, series []agent.Series) error {
	t := a.states
	r := t.scratch.Get().(*rendered)
	unserved := r.render(t.families, series)
	t.mu.Lock()
	a.series.Add(int64(t.replaceLocked(key, r)))
	t.mu.Unlock()
	t.scratch.Put(r)
	if unserved != "" {
		return fmt.Errorf("family %q is not one of %v", unserved, slices.Sorted(maps.Keys(t.families)))
	}
	return nil
}

// render renders series, and returns the first family that is not among fams.
func (r *rendered) render(fams map[string]*family, series []agent.Series) (unserved string) {
	r.text, r.series = r.text[:0], r.series[:0]
	for i := range series {
		s := &series[i]
		f := fams[s.Family]
		if f == nil {
			unserved = cmp.Or(unserved, s.Family)
			continue
		}
		r.text = append(r.text, f.name...)
		sep := byte('{')
		var username, workspace string
		for _, l := range s.Labels {
			switch l.Name {
			case labelUsernameName:
				username = l.Value
			case labelWorkspaceName:
				workspace = l.Value
			}
			if l.Value == "" {
				continue
			}
			r.text = metrics.AppendTextLabel(append(r.text, sep), l.Name, strings.ToValidUTF8(l.Value, "\uFFFD"))
			sep = ','
		}
		if sep == ',' {
			r.text = append(r.text, '}')
		}
		r.text = append(r.text, ' ')
		r.series = append(r.series, renderedSeries{
			family: f, end: len(r.text), key: metrics.ShardKeyOf(username, workspace), value: canonical(s.Value),
		})
	}
	return unserved
}

// replaceLocked returns the increase of the number of lines.
func (t *states) replaceLocked(key agent.SeriesKey, r *rendered) int {
	before := len(t.byPrefix)
	old := t.byKey[key]
	lines := make([]*stateLine, 0, len(r.series))
	start := 0
	for i, s := range r.series {
		prefix := r.text[start:s.end]
		start = s.end
		// Mostly the series are the same as before, in the same order.
		line := (*stateLine)(nil)
		if i < len(old) && old[i].prefix == string(prefix) {
			line = old[i]
		} else {
			line = t.byPrefix[string(prefix)]
		}
		switch {
		case line == nil:
			line = &stateLine{prefix: string(prefix), owner: key}
			line.block, line.slot = s.family.lines.Add(prefix, s.key, s.value)
			t.byPrefix[line.prefix] = line
		case slices.Contains(lines, line):
			continue
		default:
			line.setValue(key, s.value)
		}
		lines = append(lines, line)
	}
	for i, line := range old {
		if i < len(lines) && lines[i] == line || slices.Contains(lines, line) {
			continue
		}
		t.releaseLineLocked(line, key)
	}
	if len(lines) == 0 {
		delete(t.byKey, key)
	} else {
		t.byKey[key] = lines
	}
	return len(t.byPrefix) - before
}

// family returns the name of the line's family.
func (l *stateLine) family() string { return l.prefix[:strings.IndexAny(l.prefix, "{ ")] }

// setValue sets the value of the line, or, if another key has it, the waiting
// value.
func (l *stateLine) setValue(key agent.SeriesKey, v float64) {
	if l.owner == key {
		l.block.Set(l.slot, v)
		return
	}
	for i := range l.waiting {
		if l.waiting[i].key == key {
			l.waiting[i].value = v
			return
		}
	}
	l.waiting = append(l.waiting, stateValue{key, v})
}

// releaseLineLocked removes the key from the line, which the first waiting key
// gets.
func (t *states) releaseLineLocked(l *stateLine, key agent.SeriesKey) {
	switch {
	case l.owner != key:
		l.waiting = slices.DeleteFunc(l.waiting, func(h stateValue) bool { return h.key == key })
	case len(l.waiting) > 0:
		next := l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
		l.owner = next.key
		l.block.Set(l.slot, next.value)
	default:
		l.block.Retire(l.slot)
		delete(t.byPrefix, l.prefix)
	}
}
