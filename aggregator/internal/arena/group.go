package arena

import (
	"slices"
	"sync"
	"unsafe"

	"github.com/coder/agentstatsd/metrics"
)

const (
	// groupNames is how many names a new one is added to. With 5 lines of 200 bytes each a
	// scrape of a group copies 20 to 60 KB of each family.
	groupNames = 128
	// groupRows bounds a group of names with many lines.
	groupRows = 4096
	// maxNames is how many names there are with those of which only retired lines are left.
	maxNames = 1 << 8
)

// Head is what many lines of one family begin with: its name, and the labels before those
// that tell the lines of one name from those of another. It does not change.
type Head struct {
	text string
	// labels are its labels as fields of a Metric.
	labels string
}

// NewHead returns the head of lines of f. text is f's name and, if the line has labels, a brace,
// the head's labels and, unless the name's text has none, what separates them from its own.
func NewHead(f *Family, text string) *Head {
	labels := text[len(f.name):]
	if len(labels) > 0 {
		labels = labels[1:]
	}
	if n := len(labels); n > 0 && labels[n-1] == ',' {
		labels = labels[:n-1]
	}
	return &Head{text: text, labels: string(metrics.AppendProtoLabels(nil, []byte(labels)))}
}

// Text returns the text of the head.
func (h *Head) Text() string { return h.text }

// Group has the lines of some names, in several families. A name is what lines end with before
// their value: the labels of a workspace, a brace and a blank. So the text of a workspace is kept
// once, and what lines of several workspaces begin with is kept once, too. Lines are
// put together by each scrape, in some 40 ns.
//
// A row has one of these states. A retired row is shown only by the scrapes that were
// under way then:
//
//	free --Add--> shown --Retire--> retired --last scrape ends--> free
//
// mu guards all fields below it, and those of the rows. Family.mu comes before it,
// Generations.mu after it.
type Group struct {
	generations *Generations

	mu    sync.Mutex
	text  spanBuffer // by name
	names []name
	// freeNames are those below len(names) without rows.
	freeNames []uint8
	// live is the number of names with rows that are not retired, liveRows that of such rows;
	// rows that of all rows.
	live, liveRows, rows int
	heads                []groupHead
	freeHeads            []uint32
	// of has the rows by family, nil: there are none.
	of map[*Family]*Rows
}

// name is what the rows of one name share.
type name struct {
	// rows counts the name's rows, live those that are not retired.
	rows, live uint32
	// protoSize is the size of its labels as fields of a Metric.
	protoSize uint32
	key       metrics.ShardKey
}

type groupHead struct {
	*Head
	rows uint32
}

// NewGroup returns a group without names. Families of its rows have the same generations.
func NewGroup(generations *Generations) *Group {
	return &Group{generations: generations, of: make(map[*Family]*Rows)}
}

// HasRoom reports whether a name may be added now, or later: when the retired rows are free.
func (g *Group) HasRoom() (now, later bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	later = g.live < groupNames && g.liveRows < groupRows
	return later && g.rows < groupRows && (len(g.names) < maxNames || len(g.freeNames) > 0), later
}

// AddName adds a name that the group has not, and returns its number. Rows are to follow: a name
// goes with its last row. There must be room.
func (g *Group) AddName(text []byte, key metrics.ShardKey) uint8 {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := name{key: key, protoSize: uint32(len(metrics.AppendProtoLabels(nil, labelsOfName(text))))}
	var number uint8
	if last := len(g.freeNames) - 1; last >= 0 {
		number = g.freeNames[last]
		g.freeNames = g.freeNames[:last]
		g.names[number] = n
	} else {
		number = uint8(len(g.names))
		g.names = append(g.names, n)
		g.text.spans = append(g.text.spans, span{})
	}
	g.text.putSpan(uint32(number), text)
	return number
}

// HasName reports whether that is the text of a name, which has rows.
func (g *Group) HasName(number uint8, text []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return string(g.text.bytes(uint32(number))) == string(text)
}

// AppendName appends the text of a name, which has rows.
func (g *Group) AppendName(dst []byte, number uint8) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append(dst, g.text.bytes(uint32(number))...)
}

// HasOneRow reports whether a name has one row that is not retired.
func (g *Group) HasOneRow(number uint8) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.names[number].live == 1
}

// labelsOfName returns the list between the braces of what the text of a name is.
func labelsOfName(text []byte) []byte { return text[:max(0, len(text)-2)] } // } and blank

// useHeadLocked counts a row of the head, and returns its number.
func (g *Group) useHeadLocked(h *Head) uint32 {
	free := len(g.freeHeads) - 1
	at := slices.IndexFunc(g.heads, func(o groupHead) bool { return o.Head == h })
	switch {
	case at >= 0:
	case free >= 0:
		at = int(g.freeHeads[free])
		g.freeHeads = g.freeHeads[:free]
		g.heads[at].Head = h
	default:
		at = len(g.heads)
		g.heads = append(g.heads, groupHead{Head: h})
	}
	g.heads[at].rows++
	return uint32(at)
}

// addLocked counts a row of the name.
func (g *Group) addLocked(number uint8) {
	g.rows++
	g.liveRows++
	n := &g.names[number]
	n.rows++
	if n.live++; n.live == 1 {
		g.live++
	}
}

// retireLocked counts a row of the name less that is not retired.
func (g *Group) retireLocked(number uint8) {
	g.liveRows--
	n := &g.names[number]
	if n.live--; n.live == 0 {
		g.live--
	}
}

// freeLocked releases what a row had.
func (g *Group) freeLocked(head uint32, number uint8) {
	h := &g.heads[head]
	if h.rows--; h.rows == 0 {
		h.Head = nil
		g.freeHeads = append(g.freeHeads, head)
	}
	n := &g.names[number]
	if n.rows--; n.rows == 0 {
		g.text.dropSpan(uint32(number))
		g.text.compact(false)
		g.freeNames = append(g.freeNames, number)
	}
	g.rows--
	if len(g.freeNames) == len(g.names) { // else rows of one are to follow
		g.text, g.names, g.freeNames, g.heads, g.freeHeads = spanBuffer{}, nil, nil, nil, nil
	}
}

// Footprint returns the bytes that the group takes for names and heads, beside the rows and the heads
// themselves.
func (g *Group) Footprint() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return int(unsafe.Sizeof(*g)) + g.text.footprint() + cap(g.names)*int(unsafe.Sizeof(name{})) + cap(g.freeNames) +
		cap(g.heads)*int(unsafe.Sizeof(groupHead{})) + 4*cap(g.freeHeads) + len(g.of)*int(unsafe.Sizeof(&Rows{})*2)
}
