package aggregator

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"unsafe"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/aggregator/internal/walk"
)

// Footprint is the memory that families take.
type Footprint struct {
	// Families are those that take the most, the largest first, equal ones by name.
	Families []FamilyFootprint
	// Names is the number of families. Bytes are those of all of them.
	Names int
	Bytes int64
	// AgentBytes are those that agents take beside their families: names, the bytes of the last
	// minute, the stats gauges' entries, the families that they have, and what the states of
	// each workspace share.
	AgentBytes int64
}

// FamilyFootprint is the memory that one family takes.
type FamilyFootprint struct {
	Name string
	// Series are those of agents, and states.
	Series int
	Bytes  int64
}

// The sizes of what a series takes beside its line. A map's entry is its key and value.
const (
	familySize      = int(unsafe.Sizeof(family{}) + unsafe.Sizeof("") + unsafe.Sizeof(&family{}))
	descSize        = int(unsafe.Sizeof(desc{}) + unsafe.Sizeof("") + unsafe.Sizeof(&desc{}))
	encodingSize    = int(unsafe.Sizeof(typedEncoding{}))
	seriesSize      = int(unsafe.Sizeof(series{}))
	appSeriesSize   = int(unsafe.Sizeof(appSeries{}))
	contributorSize = int(unsafe.Sizeof(contributor{}) + unsafe.Sizeof(&contributor{}))
	groupSize       = int(unsafe.Sizeof(group{}) + unsafe.Sizeof("") + unsafe.Sizeof(&group{}))
	agentSize       = int(unsafe.Sizeof(agentSeries{}) + unsafe.Sizeof(agent.ID{}) + unsafe.Sizeof(&agentSeries{}) +
		unsafe.Sizeof(nameKey{}) + unsafe.Sizeof([]*agentSeries{}) + unsafe.Sizeof(&agentSeries{}))
)

// Footprint returns the families that take the most memory, at most limit of them, at
// most cardinality.MaxCounts; 0: cardinality.DefaultCounts. The bytes of a family are the sum of
//
//   - its blocks with the values and lines of its series (arena.Family.Footprint)
//   - of each descriptor: itself, its key, its labels, its encoding, and its entry in a map
//   - of each series: its entry in the agent's list; of a stats gauge none
//   - of each series, if there are groups: what it contributes, and its place in the group
//   - of each group: itself, its prefix, and its entry in a map
//   - of each state: its row
//
// They are computed from the sizes of the structures. The allocator's rounding and the free
// places of maps are not in it: the heap has some 10 % more.
//
// It takes as long as there are blocks, descriptors, groups, states and agents. It blocks and
// ends like Cardinality.
func (a *Aggregator) Footprint(ctx context.Context, limit int) (*Footprint, error) {
	if err := cardinality.CheckLimit(limit); err != nil {
		return nil, fmt.Errorf("footprint: %w", err)
	}
	out, err := a.measureFootprint(ctx, cmp.Or(limit, cardinality.DefaultCounts))
	if err != nil {
		return nil, fmt.Errorf("footprint: %w", err)
	}
	return out, nil
}

func (a *Aggregator) measureFootprint(ctx context.Context, limit int) (*Footprint, error) {
	done, err := a.beginCounting(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	of := make(map[string]*FamilyFootprint)
	add := func(name string, series, bytes int) {
		n := of[name]
		if n == nil {
			n = &FamilyFootprint{Name: name}
			of[name] = n
		}
		n.Series += series
		n.Bytes += int64(bytes)
	}
	for _, f := range a.families.list() {
		bytes, err := f.footprint(ctx)
		if err != nil {
			return nil, err
		}
		add(f.name, 0, bytes)
	}
	perSeries := 0
	if a.grouped {
		perSeries = contributorSize
	}
	err = a.walkDescs(ctx, func(d *desc, n int) {
		switch {
		case !d.computed():
			add(d.name, n, n*(perSeries+seriesSize)+d.footprint())
		case d.labels != nil:
			add(d.name, n, n*(perSeries+appSeriesSize)+d.footprint())
		default:
			add(d.name, n, n*perSeries+d.footprint())
		}
	})
	if err != nil {
		return nil, err
	}
	err = a.states.Walk(ctx, func(prefix string) { add(familyOf(prefix), 1, 0) })
	if err != nil {
		return nil, err
	}
	out := &Footprint{Names: len(of), AgentBytes: int64(a.states.Footprint())}
	err = a.walkAgents(ctx, func(as *agentSeries) { out.AgentBytes += int64(as.footprint()) })
	if err != nil {
		return nil, err
	}
	most := cardinality.NewTop(limit, func(a, b FamilyFootprint) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Name, b.Name))
	})
	for _, n := range of {
		out.Bytes += n.Bytes
		most.Add(*n)
	}
	out.Families = most.Sorted()
	return out, nil
}

// footprint returns the bytes of the family, its blocks and its groups.
func (f *family) footprint(ctx context.Context) (int, error) {
	f.mu.Lock()
	lines, groups := f.lines, f.groups
	f.mu.Unlock()
	n := familySize + len(f.name) + lines.Footprint()
	err := walk.Each(ctx, &f.mu, groups, func(g *group) { n += groupSize + len(g.prefix) })
	return n, err
}

func (d *desc) footprint() int {
	n := descSize + len(d.key) + len(d.labels)*int(unsafe.Sizeof(agent.Label{}))
	if e := d.encoding.Load(); e != nil {
		n += encodingSize + len(e.Head) + len(e.Tail)
	}
	return n
}

// footprint returns the bytes of the agent, without the entries of its series.
func (as *agentSeries) footprint() int {
	as.mu.Lock()
	defer as.mu.Unlock()
	n := agentSize + len(as.ident.Username) + len(as.ident.WorkspaceName) + len(as.ident.AgentName) + len(as.ident.TemplateName)
	n += cap(as.families)*int(unsafe.Sizeof(agentFamily{})) + cap(as.bytesMoved.buckets)*int(unsafe.Sizeof(bucket{}))
	n += (cap(as.series)-len(as.series))*seriesSize + cap(as.stale)*int(unsafe.Sizeof(staleSeries{})) - len(as.stale)*seriesSize
	return n + (cap(as.sessions)-len(as.sessions))*appSeriesSize
}
