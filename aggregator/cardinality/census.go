package cardinality

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"strings"

	"github.com/coder/agentstatsd/agent"
)

// countedName is a family, template or owner, or a workspace of an owner.
type countedName struct{ of, name string }

// countedLabel has the series that have a label, in all and by the hash of its value.
type countedLabel struct {
	series int
	values map[uint64]countedValue
}

// countedValue is a value of a label.
type countedValue struct {
	value  string
	series int
}

// Census counts series by name, for some dimensions. It is used by one goroutine.
type Census struct {
	// family and label restrict what is counted. label does so for values only.
	family, label string
	wanted        [dimensions]bool
	byName        [dimensions]map[countedName]int
	labels        map[string]*countedLabel
	// hash is one of values.
	hash func(value string) uint64
	// agents are those with series.
	agents []Agent
}

// Agent is what an agent has.
type Agent struct {
	ID       agent.ID
	Identity agent.Identity
	// Forwarded are the series that the agent forwards. Computed are those that the service
	// computes of its stats, which have no template.
	Forwarded, Computed int
}

// NewCensus returns one that counts by the dimensions. family and label are as in Query.
func NewCensus(family, label string, by ...Dimension) *Census {
	seed := maphash.MakeSeed()
	c := &Census{
		family: family, label: label, labels: make(map[string]*countedLabel),
		hash: func(value string) uint64 { return maphash.String(seed, value) },
	}
	for _, d := range by {
		c.wanted[d] = true
		c.byName[d] = make(map[countedName]int)
	}
	return c
}

// NeedsSeries reports whether Add and AddState are to be called, with all series.
func (c *Census) NeedsSeries() bool { return c.wanted[ByFamily] || c.needsLabels() }

// NeedsAgents reports whether AddAgent is to be called, with all agents.
func (c *Census) NeedsAgents() bool {
	return c.needsLabels() || c.wanted[ByTemplate] || c.wanted[ByOwner] || c.wanted[ByWorkspace] || c.wanted[ByAgent]
}

func (c *Census) needsLabels() bool { return c.wanted[ByLabel] || c.wanted[ByLabelValue] }

// Add adds n series of agents of a family. labels are those that do not name an agent.
func (c *Census) Add(family string, labels []agent.Label, n int) {
	if n == 0 || c.family != "" && c.family != family {
		return
	}
	if c.wanted[ByFamily] {
		c.byName[ByFamily][countedName{name: family}] += n
	}
	if c.needsLabels() {
		for i := range labels {
			c.addLabel(&labels[i], n)
		}
	}
}

func (c *Census) addLabel(l *agent.Label, n int) {
	if n == 0 || l.Value == "" || c.label != "" && c.label != l.Name {
		return
	}
	of := c.labels[l.Name]
	if of == nil {
		of = &countedLabel{values: make(map[uint64]countedValue)}
		c.labels[l.Name] = of
	}
	of.series += n
	of.add(c.hash(l.Value), l.Value, n)
}

// add adds series with a value. A map of strings would read each again when it grows,
// which takes half of the time for a million.
func (of *countedLabel) add(hash uint64, value string, n int) {
	for {
		have, made := of.values[hash]
		if !made || have.value == value {
			of.values[hash] = countedValue{value: value, series: have.series + n}
			return
		}
		hash++
	}
}

// AddState adds a series of a state. prefix is how its line begins: the name, its labels in
// braces if it has any, and a blank.
func (c *Census) AddState(prefix string) {
	name, labels, _ := strings.Cut(prefix[:len(prefix)-1], "{")
	if c.family != "" && c.family != name {
		return
	}
	if c.wanted[ByFamily] {
		c.byName[ByFamily][countedName{name: name}]++
	}
	for c.needsLabels() && len(labels) > 1 { // more than }
		var l agent.Label
		l, labels = cutLabel(labels)
		c.addLabel(&l, 1)
	}
}

// cutLabel cuts the first label off labels as metrics.AppendTextLabel appends them, with the comma
// or brace after it.
func cutLabel(labels string) (l agent.Label, rest string) {
	l.Name, rest, _ = strings.Cut(labels, `="`)
	end := 0
	for rest[end] != '"' {
		if rest[end] == '\\' {
			end++
		}
		end++
	}
	if l.Value = rest[:end]; strings.Contains(l.Value, `\`) {
		l.Value = unescape.Replace(l.Value)
	}
	return l, rest[end+2:]
}

var unescape = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n")

// AddAgent adds the series of an agent by the labels that name it. They are those of the
// census's family, if it has one.
func (c *Census) AddAgent(n *Agent) {
	all := n.Forwarded + n.Computed
	if all == 0 {
		return
	}
	if c.needsLabels() {
		c.addLabel(&agent.Label{Name: "agent_name", Value: n.Identity.AgentName}, all)
		c.addLabel(&agent.Label{Name: "template_name", Value: n.Identity.TemplateName}, n.Forwarded)
		c.addLabel(&agent.Label{Name: "username", Value: n.Identity.Username}, all)
		c.addLabel(&agent.Label{Name: "workspace_name", Value: n.Identity.WorkspaceName}, all)
	}
	if c.wanted[ByTemplate] {
		c.byName[ByTemplate][countedName{name: n.Identity.TemplateName}] += all
	}
	if c.wanted[ByOwner] {
		c.byName[ByOwner][countedName{name: n.Identity.Username}] += all
	}
	if c.wanted[ByWorkspace] {
		c.byName[ByWorkspace][countedName{of: n.Identity.Username, name: n.Identity.WorkspaceName}] += all
	}
	if c.wanted[ByAgent] {
		c.agents = append(c.agents, *n)
	}
}

// Rank fills in the names of a dimension that have the most series, at most limit.
func (c *Census) Rank(by Dimension, limit int, out *Result) {
	most := NewTop(limit, compareCounts)
	add := func(n Count) {
		out.Sum += n.Series
		most.Add(n)
	}
	switch by {
	case ByLabel:
		out.Names = len(c.labels)
		for name, of := range c.labels {
			add(Count{Name: name, Series: of.series, Values: len(of.values)})
		}
	case ByLabelValue:
		for label, of := range c.labels {
			out.Names += len(of.values)
			for _, v := range of.values {
				add(Count{Label: label, Name: v.value, Series: v.series})
			}
		}
	case ByAgent:
		out.Names = len(c.agents)
		for i := range c.agents {
			of := &c.agents[i]
			add(Count{
				Name: of.Identity.AgentName, Owner: of.Identity.Username, Workspace: of.Identity.WorkspaceName, Agent: of.ID,
				Series: of.Forwarded + of.Computed,
			})
		}
	default:
		out.Names = len(c.byName[by])
		for name, series := range c.byName[by] {
			add(Count{Name: name.name, Owner: name.of, Series: series})
		}
	}
	out.Counts = most.Sorted()
}

// compareCounts is less than 0 if a has more series than b, or as many and comes before it.
func compareCounts(a, b Count) int {
	if a.Series != b.Series {
		return cmp.Compare(b.Series, a.Series)
	}
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return cmp.Or(
		strings.Compare(a.Label, b.Label), strings.Compare(a.Owner, b.Owner), strings.Compare(a.Workspace, b.Workspace),
		bytes.Compare(a.Agent[:], b.Agent[:]),
	)
}
