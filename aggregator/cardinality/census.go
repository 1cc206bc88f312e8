package cardinality

import (
	"bytes"
	"cmp"
	"strings"

	"github.com/coder/agentstatsd/agent"
)

// countedName is a family, label, template or owner, a value of a label, or a workspace
// of an owner.
type countedName struct{ of, name string }

// Census counts series by name, for some dimensions. It is used by one goroutine.
type Census struct {
	// family and label restrict what is counted. label does so for values only.
	family, label string
	wanted        [dimensions]bool
	byName        [ByAgent]map[countedName]int
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
	c := &Census{family: family, label: label}
	for _, d := range by {
		c.wanted[d] = true
	}
	// A label is ranked with the number of its values.
	c.wanted[ByLabelValue] = c.wanted[ByLabelValue] || c.wanted[ByLabel]
	for d := range c.byName {
		c.byName[d] = make(map[countedName]int)
	}
	return c
}

// NeedsSeries reports whether Add and AddState are to be called, with all series.
func (c *Census) NeedsSeries() bool { return c.wanted[ByFamily] || c.wanted[ByLabelValue] }

// NeedsAgents reports whether AddAgent is to be called, with all agents.
func (c *Census) NeedsAgents() bool {
	return c.wanted[ByLabelValue] || c.wanted[ByTemplate] || c.wanted[ByOwner] || c.wanted[ByWorkspace] || c.wanted[ByAgent]
}

// Add adds n series of agents of a family. labels are those that do not name an agent.
func (c *Census) Add(family string, labels []agent.Label, n int) {
	if n == 0 || c.family != "" && c.family != family {
		return
	}
	if c.wanted[ByFamily] {
		c.byName[ByFamily][countedName{name: family}] += n
	}
	for _, l := range labels {
		c.addLabel(l, n)
	}
}

func (c *Census) addLabel(l agent.Label, n int) {
	if n == 0 || l.Value == "" {
		return
	}
	if c.wanted[ByLabel] {
		c.byName[ByLabel][countedName{name: l.Name}] += n
	}
	if c.wanted[ByLabelValue] && (c.label == "" || c.label == l.Name) {
		c.byName[ByLabelValue][countedName{of: l.Name, name: l.Value}] += n
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
	for c.wanted[ByLabelValue] && len(labels) > 1 { // more than }
		var l agent.Label
		l, labels = cutLabel(labels)
		c.addLabel(l, 1)
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
	if c.wanted[ByLabelValue] {
		c.addLabel(agent.Label{Name: "agent_name", Value: n.Identity.AgentName}, all)
		c.addLabel(agent.Label{Name: "template_name", Value: n.Identity.TemplateName}, n.Forwarded)
		c.addLabel(agent.Label{Name: "username", Value: n.Identity.Username}, all)
		c.addLabel(agent.Label{Name: "workspace_name", Value: n.Identity.WorkspaceName}, all)
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
	if by == ByAgent {
		out.Names = len(c.agents)
		for i := range c.agents {
			n := &c.agents[i]
			add(Count{
				Name: n.Identity.AgentName, Owner: n.Identity.Username, Workspace: n.Identity.WorkspaceName, Agent: n.ID,
				Series: n.Forwarded + n.Computed,
			})
		}
	} else {
		out.Names = len(c.byName[by])
		for name, series := range c.byName[by] {
			n := Count{Name: name.name, Series: series}
			switch by {
			case ByLabelValue:
				n.Label = name.of
			case ByWorkspace:
				n.Owner = name.of
			}
			add(n)
		}
	}
	out.Counts = most.Sorted()
	if by == ByLabel {
		c.countValues(out.Counts)
	}
}

// countValues fills in how many values the labels have.
func (c *Census) countValues(labels []Count) {
	values := make(map[string]int)
	for name := range c.byName[ByLabelValue] {
		values[name.of]++
	}
	for i := range labels {
		labels[i].Values = values[labels[i].Name]
	}
}

// compareCounts is less than 0 if a has more series than b, or as many and comes before it.
func compareCounts(a, b Count) int {
	return cmp.Or(
		cmp.Compare(b.Series, a.Series), strings.Compare(a.Label, b.Label), strings.Compare(a.Owner, b.Owner),
		strings.Compare(a.Workspace, b.Workspace), strings.Compare(a.Name, b.Name), bytes.Compare(a.Agent[:], b.Agent[:]),
	)
}
