package states

import (
	"cmp"
	"strings"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// change replaces the series of one key. It keeps its buffers.
type change struct {
	text   []byte
	ends   []textEnds
	series []rendered
	// places are those that the key has before and after.
	places []changedPlace
	// owned are the lines of the key, waits those for which it still waits.
	owned []owned
	waits []line
	rows  []arena.Owned
}

// rendered is one series. Its bytes are the change's.
type rendered struct {
	family     *arena.Family
	head, name []byte
	key        metrics.ShardKey
	value      float64
}

// textEnds are the ends of the head and the name of a series in the text.
type textEnds struct{ head, name int }

// changedPlace is a place of the key. added: its name was none before.
type changedPlace struct {
	place
	added bool
}

// owned is a line that the key has. kept: it has it after the change, too.
type owned struct {
	arena.Owned
	name name
	kept bool
}

// render renders series, and returns the first family that is not among families.
func (c *change) render(families map[string]*arena.Family, series []agent.Series) (unserved string) {
	c.text, c.ends, c.series = c.text[:0], c.ends[:0], c.series[:0]
	for i := range series {
		s := &series[i]
		family := families[s.Family]
		if family == nil {
			unserved = cmp.Or(unserved, s.Family)
			continue
		}
		username, workspace := c.renderLabels(s)
		c.series = append(c.series, rendered{
			family: family, key: metrics.ShardKeyOf(username, workspace), value: metrics.CanonicalValue(s.Value),
		})
	}
	start := 0
	for i := range c.series { // the text stays where it is
		ends := c.ends[i]
		c.series[i].head, c.series[i].name = c.text[start:ends.head], c.text[ends.head:ends.name]
		start = ends.name
	}
	return unserved
}

// renderLabels renders what the line of a series begins with. The name's text begins with the first
// label of the workspace.
func (c *change) renderLabels(s *agent.Series) (username, workspace string) {
	c.text = append(c.text, s.Family...)
	headEnd, sep := -1, byte('{')
	for _, l := range s.Labels {
		ofWorkspace := false
		switch l.Name {
		case "username":
			username, ofWorkspace = l.Value, true
		case "workspace_name":
			workspace, ofWorkspace = l.Value, true
		}
		if l.Value == "" {
			continue
		}
		c.text = append(c.text, sep)
		if ofWorkspace && headEnd < 0 {
			headEnd = len(c.text)
		}
		c.text = metrics.AppendTextLabel(c.text, l.Name, strings.ToValidUTF8(l.Value, "\uFFFD"))
		sep = ','
	}
	if headEnd < 0 {
		headEnd = len(c.text)
	}
	if sep == ',' {
		c.text = append(c.text, '}')
	}
	c.text = append(c.text, ' ')
	c.ends = append(c.ends, textEnds{headEnd, len(c.text)})
	return username, workspace
}

// beginLocked looks up what the key has.
func (c *change) beginLocked(t *States, key agent.SeriesKey) {
	c.places, c.owned, c.waits = c.places[:0], c.owned[:0], c.waits[:0]
	if p, ok := t.placesOf(key)[key.ID]; ok {
		c.places = append(c.places, changedPlace{place: p})
	}
	if len(t.further) > 0 {
		for _, p := range t.further[key] {
			c.places = append(c.places, changedPlace{place: p})
		}
	}
	for _, p := range c.places {
		c.rows = t.groupOf(p.name).AppendOwned(c.rows[:0], p.owner)
		for _, row := range c.rows {
			c.owned = append(c.owned, owned{Owned: row, name: p.name})
		}
	}
}

// placeLocked returns the place of a series. It makes one if the key has none of that name.
func (c *change) placeLocked(t *States, s *rendered) changedPlace {
	for _, p := range c.places {
		if t.groupOf(p.name).HasName(p.name.number(), s.name) {
			return p
		}
	}
	hash := t.hash(s.name)
	n, known := t.findNameLocked(hash, s.name)
	if !known {
		n = t.addNameLocked(hash, s.name, s.key)
	}
	g := t.groupOf(n)
	g.owners++
	p := changedPlace{place{n, g.owners}, !known}
	c.places = append(c.places, p)
	return p
}

// ownedLine returns the line of the key with that name and head; nil: it has none.
func (c *change) ownedLine(n name, h *arena.Head) *owned {
	for i := range c.owned {
		if o := &c.owned[i]; o.name == n && o.Head == h {
			return o
		}
	}
	return nil
}

// end forgets what the change refers to.
func (c *change) end() {
	clear(c.series)
	clear(c.owned)
	clear(c.waits)
	clear(c.rows[:cap(c.rows)])
}
