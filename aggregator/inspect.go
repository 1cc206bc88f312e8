package aggregator

import (
	"io"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// Inspection is what is in memory of one agent, for who looks for a series of it.
type Inspection struct {
	// First and Last are when the first report came since the agent had no series, and the
	// last one; zero: none did.
	First, Last time.Time
	// HiddenBy is the newer agent with equal labels that is served in place of this one;
	// zero: none is.
	HiddenBy agent.ID
	// Sends is the type with which the agent sends the family; valid if Sent. Of a
	// documented family it is the documented type.
	Sends metrics.Type
	Sent  bool
	// Series are those of the family.
	Series []InspectedSeries
	Usage  Usage
}

// InspectedSeries is a series of an agent.
type InspectedSeries struct {
	// Text is the series as it would be without grouping, in the text format.
	Text string
	// Group is the series to which it contributes, likewise; empty: to none.
	Group string
	// Last is when the last report came that had it.
	Last time.Time
}

// Usage is what is used of the limits of an agent, of its owner, and of all agents.
type Usage struct {
	AgentSeries, AgentBytes, AgentFamilies int
	OwnerSeries, OwnerBytes                int
	Series, Bytes, Families                int
}

// Scope is whom a limit bounds.
type Scope uint8

// The scopes of limits.
const (
	ScopeAgent Scope = iota // each agent
	ScopeOwner              // all agents of a user together
	ScopeAll                // all agents together
)

// UsedLimit is a limit, and what is used of it.
type UsedLimit struct {
	Scope       Scope
	Limit, Used int
	// What it counts, and the option that sets it, with its dashes.
	What, Flag string
}

// LimitOf returns the limit that a sample exceeds which is refused for a reason; false: it
// is no limit's. u is the usage of its agent.
func (a *Aggregator) LimitOf(reason metrics.Reason, u Usage) (UsedLimit, bool) {
	const series, bytes, families = "series", "bytes of names and labels", "families"
	o := a.opts.Load()
	switch reason {
	case reasonAgentSeries:
		return UsedLimit{ScopeAgent, o.MaxSeriesPerAgent, u.AgentSeries, series, "--max-series-per-agent"}, true
	case reasonAgentBytes:
		return UsedLimit{ScopeAgent, o.MaxSeriesBytesPerAgent, u.AgentBytes, bytes, "--max-series-bytes-per-agent"}, true
	case reasonAgentFamilies:
		return UsedLimit{ScopeAgent, o.MaxFamiliesPerAgent, u.AgentFamilies, families, "--max-families-per-agent"}, true
	case reasonOwnerSeries:
		return UsedLimit{ScopeOwner, o.MaxSeriesPerOwner, u.OwnerSeries, series, "--max-series-per-owner"}, true
	case reasonOwnerBytes:
		return UsedLimit{ScopeOwner, o.MaxSeriesBytesPerOwner, u.OwnerBytes, bytes, "--max-series-bytes-per-owner"}, true
	case reasonTooManySeries:
		return UsedLimit{ScopeAll, o.MaxSeries, u.Series, series, "--max-series"}, true
	case reasonTooManyBytes:
		return UsedLimit{ScopeAll, o.MaxSeriesBytes, u.Bytes, bytes, "--max-series-bytes"}, true
	case reasonTooManyFamilies:
		return UsedLimit{ScopeAll, o.MaxFamilies, u.Families, families, "--max-families"}, true
	}
	return UsedLimit{}, false
}

// FamilyTypes is which type a family has, and which types agents send.
type FamilyTypes struct {
	// Type that agents' series of it have.
	Type metrics.Type
	// Documented: the type is that of the catalogue. Reserved: coderd pushes a family that
	// decides it; there may be no type that agents can send.
	Documented, Reserved bool
	// Agents are how many send each type. Of a documented family nobody counts them.
	Agents map[metrics.Type]int
}

// Inspect returns what is in memory of an agent, with its series of a family; empty: of
// all. It returns false if the agent has neither a session here nor series.
func (a *Aggregator) Inspect(id agent.ID, family string) (in Inspection, known bool) {
	as := a.agent(id)
	if as == nil {
		return Inspection{}, false
	}
	a.lifecycleMu.Lock()
	if shown := a.named[as.nameKey()]; len(shown) > 0 && shown[0] != as {
		in.HiddenBy = shown[0].id
	}
	a.lifecycleMu.Unlock()
	found, ident := as.inspect(a, family, &in)
	for i, s := range found {
		in.Series[i].Text = seriesText(appendPrefix(nil, s.desc, &ident, s.desc.family.identity(allLabels)))
	}
	in.Usage.Series, in.Usage.Bytes = int(a.series.Load()), int(a.seriesBytes.Load())
	in.Usage.Families = a.families.countUndocumented()
	return in, true
}

// inspect fills all but what is rendered of the series that it returns.
func (as *agentSeries) inspect(a *Aggregator, family string, in *Inspection) (found []series, ident agent.Identity) {
	as.mu.Lock()
	defer as.mu.Unlock()
	in.First, in.Last = a.timeOf(as.first), a.timeOf(as.reported)
	in.Usage = Usage{AgentSeries: int(as.count), AgentBytes: int(as.bytes), AgentFamilies: len(as.families)}
	if as.owner != nil { // it is nil while the agent gets another
		in.Usage.OwnerSeries, in.Usage.OwnerBytes = int(as.owner.series.Load()), int(as.owner.bytes.Load())
	}
	for i := range as.families {
		if of := &as.families[i]; of.family.name == family {
			in.Sends, in.Sent = sampleType(of.typ), true
		}
	}
	seen := make(map[*desc]int64, len(as.stale))
	for i := range as.stale {
		seen[as.stale[i].desc] = as.stale[i].seen
	}
	for s := range as.all() {
		if family != "" && s.desc.family.name != family || s.outdated() {
			continue
		}
		one := InspectedSeries{Last: in.Last}
		if at, stale := seen[s.desc]; stale {
			one.Last = a.timeOf(at)
		}
		if m := s.contributor; m != nil && m.group != nil {
			one.Group = seriesText([]byte(m.group.prefix))
		}
		found, in.Series = append(found, *s), append(in.Series, one)
	}
	return found, as.ident
}

// seriesText returns a prefix without the blank at its end.
func seriesText(prefix []byte) string { return string(prefix[:len(prefix)-1]) }

// timeOf is the reverse of since.
func (a *Aggregator) timeOf(since int64) time.Time {
	if since == never {
		return time.Time{}
	}
	return a.started.Add(time.Duration(since))
}

// TypesOf returns the types of a family; false: there is none of that name here.
func (a *Aggregator) TypesOf(name string) (FamilyTypes, bool) {
	a.families.mu.Lock()
	f := a.families.byName[name]
	a.families.mu.Unlock()
	if f == nil {
		return FamilyTypes{}, false
	}
	if f.documented != nil {
		return FamilyTypes{Type: f.documented.Type, Documented: true}, true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	types := FamilyTypes{Type: sampleType(f.typ), Reserved: f.reserved.made, Agents: make(map[metrics.Type]int)}
	for t, agents := range f.typeCounts[:noType] {
		if agents > 0 {
			types.Agents[sampleType(agent.SampleType(t))] += agents
		}
	}
	return types, true
}

// FamilyNames returns the names of all families here, sorted.
func (a *Aggregator) FamilyNames() []string {
	list := a.families.list()
	names := make([]string, len(list))
	for i, f := range list {
		names[i] = f.name
	}
	return names
}

// WriteFamilies writes what a scrape in the text format would have of the families that
// wants is true for: agents' and those of p. A scrape begins with it.
func (a *Aggregator) WriteFamilies(w io.Writer, p Pushed, wants func(name string) bool) error {
	pushed, passed := p.Served()
	var some []*metrics.Rendered
	for _, r := range pushed {
		if wants(r.Name) {
			some = append(some, r)
		}
	}
	var list []*family
	for _, f := range a.families.list() {
		if wants(f.name) {
			list = append(list, f)
		}
	}
	a.refresh(list)
	return a.write(w, arena.NewText, metrics.Shard{}, list, passed, some)
}
