package arena

import (
	"context"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/coder/agentstatsd/metrics"
)

// Rows are the lines that a group has of one family. Group.mu guards all but what does not
// change.
type Rows struct {
	family *Family
	group  *Group
	shared sharing

	rows []row
	free []uint32
	// newest is the highest generation of any row. retired is the number of those.
	newest  uint32
	retired int
	// version counts the changes of rows and values.
	version uint32
}

// row is a line without its text. There are some of each agent, so it is small.
type row struct {
	value float64
	// generation is the newest one when the row was added. Scrapes of later generations
	// show it.
	generation uint32
	// last is the last generation that shows a retired row; 0: it is not retired.
	last uint32
	// owner is who set the value.
	owner uint32
	// head and name are numbers of the group's. A free row has rowFree in place of them.
	headName uint32
}

const (
	nameBits = 8 // maxNames
	rowFree  = 1<<32 - 1
)

func (r *row) head() uint32 { return r.headName >> nameBits }
func (r *row) name() uint8  { return uint8(r.headName) }

// live reports whether the row is neither free nor retired.
func (r *row) live() bool { return r.headName != rowFree && r.last == 0 }

// Owned is a row that an owner has.
type Owned struct {
	Rows *Rows
	Slot uint32
	Head *Head
}

// AddRow adds a row to the group.
func (f *Family) AddRow(g *Group, h *Head, number uint8, owner uint32, v float64) Owned {
	f.mu.Lock()
	defer f.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.of[f]
	if r == nil {
		r = &Rows{family: f, group: g, shared: sharing{generations: f.generations}}
		g.of[f] = r
		f.rows = append(f.rows, r)
	}
	g.addLocked(number)
	added := row{
		value: v, generation: f.generations.current(), owner: owner,
		headName: g.useHeadLocked(h)<<nameBits | uint32(number),
	}
	r.newest = max(r.newest, added.generation)
	r.version++
	if last := len(r.free) - 1; last >= 0 {
		slot := r.free[last]
		r.free = r.free[:last]
		r.rows[slot] = added
		return Owned{r, slot, h}
	}
	if len(r.rows) == cap(r.rows) {
		// An eighth more, as there are many groups and few of their rows come late.
		r.rows = append(make([]row, 0, len(r.rows)+max(4, len(r.rows)/8)), r.rows...)
	}
	r.rows = append(r.rows, added)
	return Owned{r, uint32(len(r.rows) - 1), h}
}

// AppendOwned appends the rows of an owner.
func (g *Group) AppendOwned(dst []Owned, owner uint32) []Owned {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.of {
		for i := range r.rows {
			if l := &r.rows[i]; l.owner == owner && l.live() {
				dst = append(dst, Owned{r, uint32(i), g.heads[l.head()].Head})
			}
		}
	}
	return dst
}

// Has reports whether the name has a row with that head that is not retired.
func (g *Group) Has(f *Family, h *Head, number uint8) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.of[f]
	if r == nil {
		return false
	}
	for i := range r.rows {
		if l := &r.rows[i]; l.name() == number && l.live() && g.heads[l.head()].Head == h {
			return true
		}
	}
	return false
}

// Set sets the owner and the value of a row.
func (r *Rows) Set(slot, owner uint32, v float64) {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	l := &r.rows[slot]
	if l.owner = owner; l.value != v {
		l.value = v
		r.version++
	}
}

// Retire removes a row. Scrapes under way still show it.
func (r *Rows) Retire(slot uint32) {
	if !r.retireRow(slot) {
		r.Remove(slot)
	}
}

// retireRow hides the row from the scrapes that begin later. It returns false if no scrape is
// under way.
func (r *Rows) retireRow(slot uint32) bool {
	g := r.group
	g.mu.Lock()
	defer g.mu.Unlock()
	l := &r.rows[slot]
	g.retireLocked(l.name())
	r.version++
	last, ok := g.generations.retireLine(r, slot)
	if ok {
		l.last = last
		r.retired++
	}
	return ok
}

// Remove frees a row that Retire has retired. Others may get the slot at once. It is called
// by whoever ends the last scrape.
func (r *Rows) Remove(slot uint32) {
	f, g := r.family, r.group
	f.mu.Lock()
	defer f.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	l := &r.rows[slot]
	if l.last != 0 {
		r.retired--
	}
	g.freeLocked(l.head(), l.name())
	*l = row{headName: rowFree}
	r.free = append(r.free, slot)
	if len(r.free) < len(r.rows) {
		return
	}
	delete(g.of, f)
	g.generations.forgetSharing(&r.shared)
	i := slices.Index(f.rows, r)
	f.rows = append(slices.Clip(f.rows[:i]), f.rows[i+1:]...)
}

func (r *Rows) sharing() *sharing { return &r.shared }

// showsLocked reports whether a scrape shows the row of a slot.
func (r *Rows) showsLocked(l *row, view view) bool {
	return l.headName != rowFree && l.generation < view.generation && (l.last == 0 || view.generation <= l.last) &&
		(view.keys == nil || view.keys[r.group.names[l.name()].key])
}

func (r *Rows) readingLocked(view view) reading {
	return reading{whole: r.newest < view.generation && r.retired == 0 && view.keys == nil, newest: r.newest, version: r.version}
}

// unchanged implements part.
func (r *Rows) unchanged(was reading) bool {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	return r.version == was.version
}

// shortValue is what most values take, with the newline.
const shortValue = 2

// textSize implements part.
func (r *Rows) textSize(view view) int {
	g := r.group
	g.mu.Lock()
	defer g.mu.Unlock()
	size := 0
	for i := range r.rows {
		if l := &r.rows[i]; r.showsLocked(l, view) {
			size += len(g.heads[l.head()].text) + int(g.text.spans[l.name()].size) + shortValue
		}
	}
	return size
}

// appendText implements part.
func (r *Rows) appendText(dst []byte, view view) ([]byte, reading) {
	g := r.group
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range r.rows {
		l := &r.rows[i]
		if !r.showsLocked(l, view) {
			continue
		}
		dst = append(dst, g.heads[l.head()].text...)
		dst = append(dst, g.text.bytes(uint32(l.name()))...)
		dst = metrics.AppendTextValue(dst, l.value)
		dst = append(dst, '\n')
	}
	return dst, r.readingLocked(view)
}

// borrowText implements part: there is nothing to borrow.
func (r *Rows) borrowText(view) (lines []byte, borrowers *atomic.Int32) { return nil, nil }

// protoSize implements part.
func (r *Rows) protoSize(view view, _ metrics.Type) int {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	size := 0
	for i := range r.rows {
		if l := &r.rows[i]; r.showsLocked(l, view) {
			size += metrics.SizeProtoMetric(r.protoLabelsLocked(l))
		}
	}
	return size
}

// protoLabelsLocked returns the size of the row's labels as fields of a Metric.
func (r *Rows) protoLabelsLocked(l *row) int {
	return len(r.group.heads[l.head()].labels) + int(r.group.names[l.name()].protoSize)
}

// appendProto implements part. A row that was added since is not shown.
func (r *Rows) appendProto(dst []byte, view view, t metrics.Type, size int) ([]byte, reading) {
	g := r.group
	g.mu.Lock()
	defer g.mu.Unlock()
	end := len(dst) + size
	last, from, to := -1, 0, 0 // where the labels of that name are in dst
	for i := range r.rows {
		l := &r.rows[i]
		if !r.showsLocked(l, view) {
			continue
		}
		dst = metrics.AppendProtoMetricHeader(dst, r.protoLabelsLocked(l))
		dst = append(dst, g.heads[l.head()].labels...)
		if n := l.name(); int(n) == last {
			dst = append(dst, dst[from:to]...)
		} else {
			last, from = int(n), len(dst)
			dst = metrics.AppendProtoLabels(dst, labelsOfName(g.text.bytes(uint32(n))))
			to = len(dst)
		}
		dst = metrics.AppendProtoMetricValue(dst, t, l.value)
	}
	return metrics.AppendProtoPadding(dst, end-len(dst)), r.readingLocked(view)
}

// borrowProto implements part: there is nothing to borrow.
func (r *Rows) borrowProto(view, metrics.Type, int) (made []byte, borrowers *atomic.Int32) {
	return nil, nil
}

func (r *Rows) footprint() int {
	r.group.mu.Lock()
	defer r.group.mu.Unlock()
	return int(unsafe.Sizeof(*r)) + cap(r.rows)*int(unsafe.Sizeof(row{})) + 4*cap(r.free)
}

// appendPrefixes appends what the lines of the rows begin with, and their ends. Retired rows are
// left out.
func (r *Rows) appendPrefixes(dst []byte, ends []int) ([]byte, []int) {
	g := r.group
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range r.rows {
		if l := &r.rows[i]; l.live() {
			dst = append(append(dst, g.heads[l.head()].text...), g.text.bytes(uint32(l.name()))...)
			ends = append(ends, len(dst))
		}
	}
	return dst, ends
}

// WalkRows calls f with what the line of each row begins with, without a lock. What is added or
// removed meanwhile may be left out. The text is valid during the call. It returns the error of ctx if
// that ends first, and no other.
func (f *Family) WalkRows(ctx context.Context, each func(prefix []byte)) error {
	_, rows := f.snapshot()
	var text []byte
	var ends []int
	for _, r := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		text, ends = r.appendPrefixes(text[:0], ends[:0])
		start := 0
		for _, end := range ends {
			each(text[start:end])
			start = end
		}
	}
	return ctx.Err()
}
