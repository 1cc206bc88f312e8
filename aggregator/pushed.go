package aggregator

import (
	"io"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// Pushed has the families that coderd pushes. pushed.Families is one.
type Pushed interface {
	// Served returns the families to serve, sorted by name. Their names and types
	// were given to ReserveFamilies before. passed are the names of families that are
	// served from pushes alone at that moment, here or by another replica. Nothing of
	// the result is ever changed.
	Served() (families []*metrics.Rendered, passed map[string]bool)
}

// Beside returns what writes the aggregator's families and those of p. Of one name and
// type they are one family, with the help of p's. No series is in both, as those of
// agents have a label that says so, which p's have not. See ReserveFamilies.
func (a *Aggregator) Beside(p Pushed) metrics.Exposer { return beside{agg: a, pushed: p} }

type beside struct {
	agg    *Aggregator
	pushed Pushed
	shard  metrics.Shard
}

// Shard implements metrics.Exposer. Series of agents are in one shard for each workspace, groups
// are spread by their labels, and what is pushed is in the first.
func (b beside) Shard(s metrics.Shard) metrics.Exposer {
	b.shard = s
	return b
}

// WriteText implements metrics.Exposer.
func (b beside) WriteText(w io.Writer) error {
	return b.write(w, arena.NewText)
}

// WriteProtobuf implements metrics.Exposer.
func (b beside) WriteProtobuf(w io.Writer) error {
	return b.write(w, arena.NewProto)
}

func (b beside) write(w io.Writer, begin beginScrape) error {
	families, passed := b.pushed.Served()
	if b.shard.Index > 0 {
		families = nil
	}
	return b.agg.write(w, begin, b.shard, b.agg.familiesToServe(), passed, families)
}

// nothingPushed is Pushed of a service to which nothing is pushed.
type nothingPushed struct{}

// Served implements Pushed.
func (nothingPushed) Served() (families []*metrics.Rendered, passed map[string]bool) { return nil, nil }

// writeFamilies writes agents' families and pushed ones, sorted by name. Both lists are
// sorted. Of agents' families those that are passed are left out. If headers is false, so are
// headers without series.
func writeFamilies(s *arena.Scrape, headers bool, list []*family, passed map[string]bool, pushed []*metrics.Rendered) error {
	for _, f := range list {
		if passed[f.name] {
			continue
		}
		for len(pushed) > 0 && pushed[0].Name < f.name {
			if err := s.Rendered(pushed[0]); err != nil {
				return err
			}
			pushed = pushed[1:]
		}
		var same *metrics.Rendered
		if len(pushed) > 0 && pushed[0].Name == f.name {
			same, pushed = pushed[0], pushed[1:]
		}
		if err := f.write(s, headers, same); err != nil {
			return err
		}
	}
	for _, r := range pushed {
		if err := s.Rendered(r); err != nil {
			return err
		}
	}
	return nil
}

// write writes the family, joined with the pushed one of its name; nil: there is none.
// If their types differ, as the pushed one got another while the scrape began, it is
// written alone. coderd may not push a documented family of agents.
func (f *family) write(s *arena.Scrape, headers bool, pushed *metrics.Rendered) error {
	lines, header := f.exposition()
	header.Always = header.Always && headers
	switch {
	case pushed == nil || f.documented != nil:
	case pushed.Type != header.Type:
		return s.Rendered(pushed)
	default:
		header.Joined, header.Help = pushed, pushed.Help
	}
	return s.Family(lines, header)
}

// reservation is the type that a family must have, if it is made. noType: agents may
// not send the family.
type reservation struct {
	made bool
	typ  agent.SampleType
}

// ReserveFamilies sets the families, by name and type, that coderd pushes. Samples of
// agents are refused that cannot be served beside them. What agents send of the same
// name and type is served. The next call replaces the set. names is not kept.
//
// Names collide whose types differ. A histogram or summary x also collides with
// x_count, x_sum and x_bucket. If series of agents keep no label that coderd may not
// push, their series and coderd's could be equal. Then each family collides with that
// of its name.
func (a *Aggregator) ReserveFamilies(names map[string]metrics.Type) {
	next := make(map[string]agent.SampleType, len(names))
	for name, t := range names {
		typ := sampleTypeOf(t)
		if a.keep&^labelTemplate == 0 {
			typ = noType
		}
		if _, collides := next[name]; !collides {
			next[name] = typ
		}
		if t == metrics.Histogram || t == metrics.Summary {
			for _, suffix := range [...]string{"_count", "_sum", "_bucket"} {
				next[name+suffix] = noType
			}
		}
	}
	a.reserving.Lock()
	defer a.reserving.Unlock()
	for _, f := range a.families.reserve(next) {
		typ, made := next[f.name]
		f.mu.Lock()
		f.reserved = reservation{made, typ}
		f.chooseTypeLocked()
		f.mu.Unlock()
	}
}

// reserve sets the types that names have, and returns the families for which that
// changes something. Families that are created later have those types.
func (t *families) reserve(next map[string]agent.SampleType) (changed []*family) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.reserved
	t.reserved = next
	for name, typ := range next {
		if was, made := before[name]; made && was == typ {
			continue
		}
		if f := t.byName[name]; f != nil && f.documented == nil {
			changed = append(changed, f)
		}
	}
	for name := range before {
		if _, made := next[name]; made {
			continue
		}
		if f := t.byName[name]; f != nil && f.documented == nil {
			changed = append(changed, f)
		}
	}
	return changed
}

// sampleTypeOf returns the type of samples of a family; noType if agents cannot send
// it.
func sampleTypeOf(t metrics.Type) agent.SampleType {
	switch t {
	case metrics.Counter:
		return agent.Counter
	case metrics.Gauge:
		return agent.Gauge
	case metrics.Untyped:
		return agent.Untyped
	}
	return noType
}

// contradicted returns the number of families of which agents send a type that is
// refused, as coderd pushes a family.
func (t *families) contradicted() int {
	n := 0
	for _, f := range t.list() {
		if f.contradicts() {
			n++
		}
	}
	return n
}

// contradicts reports whether an agent sends the family with another type than that
// which is reserved.
func (f *family) contradicts() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.reserved.made {
		return false
	}
	for t, agents := range f.typeCounts[:noType] {
		if agents > 0 && agent.SampleType(t) != f.typ {
			return true
		}
	}
	return false
}
