// Package cardinality counts series by the names that they have: families, labels, templates,
// owners and so on. It has what is asked, what is answered, and how names are counted and
// ranked. Package aggregator has the series.
package cardinality

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Dimension is what series are counted by.
type Dimension uint8

// The dimensions. What has no label value, as no template, is counted under an empty name.
const (
	// ByFamily counts series of agents and states.
	ByFamily Dimension = iota
	// ByLabel counts the series that have a label, and its values. It counts the labels
	// that name an agent too, grouped or not.
	ByLabel
	// ByLabelValue counts the series that have a label with a value.
	ByLabelValue
	// ByTemplate, ByOwner, ByWorkspace and ByAgent count the series of agents, by what their
	// registrations say. States are not counted: the service computes them.
	ByTemplate
	ByOwner
	ByWorkspace
	ByAgent

	dimensions
)

var dimensionNames = [dimensions]string{"family", "label", "value", "template", "owner", "workspace", "agent"}

// Dimensions returns the names of all dimensions, in their order.
func Dimensions() []string { return slices.Clone(dimensionNames[:]) }

// AllDimensions returns all dimensions, in their order.
func AllDimensions() []Dimension {
	all := make([]Dimension, dimensions)
	for d := range dimensions {
		all[d] = d
	}
	return all
}

// ParseDimension returns the dimension of that name; false: it is none of Dimensions.
func ParseDimension(name string) (d Dimension, ok bool) {
	i := slices.Index(dimensionNames[:], name)
	return Dimension(max(i, 0)), i >= 0
}

// String returns the name of the dimension.
func (d Dimension) String() string {
	if d >= dimensions {
		return fmt.Sprintf("Dimension(%d)", uint8(d))
	}
	return dimensionNames[d]
}

const (
	// MaxCounts is the largest limit of a Query: who adds up the counts of replicas asks
	// for many.
	MaxCounts = 10_000
	// MaxGrowing is the number of names of each dimension whose growth is known.
	MaxGrowing = 1_000
	// DefaultCounts is its limit if it has none.
	DefaultCounts = 100
)

// Query is what is counted.
type Query struct {
	By Dimension
	// Label is the only label whose values are counted, by ByLabelValue only; empty: all.
	Label string
	// Family is the only family whose series are counted; empty: all.
	Family string
	// Limit is how many counts are returned, at most MaxCounts; 0: DefaultCounts.
	Limit int
}

// Validate returns an error that names the field, what it may be, and its value.
func (q *Query) Validate() error {
	switch {
	case q.By >= dimensions:
		return fmt.Errorf("dimension: want one of %s, got %s", strings.Join(dimensionNames[:], ", "), q.By)
	case q.Label != "" && q.By != ByLabelValue:
		return fmt.Errorf("label: want none by %s, got %q", q.By, q.Label)
	}
	return CheckLimit(q.Limit)
}

// CheckLimit is Validate of a limit alone.
func CheckLimit(limit int) error {
	if limit < 0 || limit > MaxCounts {
		return fmt.Errorf("limit: want 0 to %d, got %d", MaxCounts, limit)
	}
	return nil
}

// Result is the answer to a Query. The totals are those of all series,
// also if the query has a family.
type Result struct {
	// Series are those that agents report: the stats gauges, sessions, and what they forward.
	// An ungrouped scrape shows them, but for those of hidden agents. If the type of a
	// family changes, it does not show series of the type before. They count until the next
	// report of their agent.
	Series int
	// States are the series of SetStates.
	States int
	// Groups are what a scrape shows in place of Series if aggregator.Options.GroupBy is set, with
	// sums of counters that agents had.
	Groups int
	// Descriptors are the names with labels, without those that name an agent, that agents share.
	Descriptors int
	// Families have series, or are documented.
	Families int
	// Agents are those with a session or series. HiddenAgents of them are hidden by a newer
	// one with the same labels.
	Agents, HiddenAgents int

	// Names is the number of names that have series. Sum are the series of all of them. By
	// label and value that is more than there are, as a series has several labels.
	Names, Sum int
	// Counts are the names with the most series, the largest first, equal ones by name.
	Counts []Count
	// GrowthOver is the time over which growth was measured, 1 to 2 min; 0: none is known yet.
	GrowthOver time.Duration
}

// Count is the number of series of a name.
type Count struct {
	// Name is that of the family, label, template, owner, workspace or agent, or the value
	// of Label.
	Name string
	// Label is set by ByLabelValue only.
	Label string
	// Owner is set by ByWorkspace and ByAgent, Workspace by ByAgent. They are names.
	Owner, Workspace string
	// Agent is set by ByAgent only.
	Agent agent.ID
	// Series is at least 1.
	Series int
	// Values is the number of different values of a label, by ByLabel only.
	Values int
	// Growth is how many series more there are a minute. It is known if the query has no
	// family, and the name was among the MaxGrowing largest before, or there were no more.
	Growth      float64
	GrowthKnown bool
}
