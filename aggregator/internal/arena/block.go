package arena

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/coder/agentstatsd/metrics"
)

const (
	// blockSlots is the size of all but a family's first blocks. At 200 bytes a
	// line a block's text is 100 KB. A copy takes some 10 us. A new series waits
	// no longer for a scrape.
	blockSlots = 512
	// firstSlots and slotGrowth give a family's first blocks 8 and 64 slots. So a
	// family of one series costs 600 bytes and not 13 KB.
	firstSlots = 8
	slotGrowth = 8
	// blockBytes bounds a block of very long lines.
	blockBytes = 128 << 10
	// minWidth of a value's field leaves most counts room to change.
	minWidth = 4
)

// Block holds the values and the rendered lines of some series of one family.
// A series is known by its block and slot until it is removed.
//
// Set stores a value without a lock, and marks its slot. The next scrape patches
// the lines of marked slots.
type Block struct {
	family *Family
	values []atomic.Uint64
	// dirty has a bit for each slot whose value was set since a scrape last
	// collected the bits.
	dirty  []atomic.Uint64
	shared sharing

	mu    sync.Mutex
	lines []line
	// text has the lines. stale has a bit for each line that is older than its
	// value, beside those in dirty.
	text  spanBuffer
	stale []uint64
	// proto is nil unless protobuf is scraped.
	proto *protoLines
	// version counts the changes of lines and values that scrapes collected.
	version uint32
	// free are the free slots below len(lines).
	free []uint16
	live int
	// newest is the highest generation of any line.
	newest uint32
	// lastShown has the last generation that shows a retired line, by slot. It is
	// mostly empty.
	lastShown map[uint32]uint32

	// listed is true while the block is in Family.roomy. The family's mutex
	// guards it.
	listed bool
}

// line describes a slot's line: a prefix, the value and a newline. A hidden or free
// slot has none.
type line struct {
	// generation is the newest one when the line was added. Scrapes of later
	// generations show the line.
	generation uint32
	// width of the value's field. The value is aligned right.
	width uint8
	// key decides which shards show the line.
	key metrics.ShardKey
}

func newBlock(f *Family, slots int) *Block {
	words := (slots + 63) / 64
	return &Block{
		family: f,
		shared: sharing{generations: f.generations},
		values: make([]atomic.Uint64, slots),
		dirty:  make([]atomic.Uint64, words),
		stale:  make([]uint64, words),
		lines:  make([]line, 0, slots),
		text:   spanBuffer{spans: make([]span, 0, slots)},
	}
}

// Set stores the value of a series. It does not block.
func (b *Block) Set(slot uint32, v float64) {
	value := &b.values[slot]
	u := math.Float64bits(v)
	if value.Load() == u {
		return
	}
	value.Store(u)
	// A scrape clears the mark before it reads the value. So a mark that is still
	// set covers this store too.
	mark, word := uint64(1)<<(slot%64), &b.dirty[slot/64]
	if word.Load()&mark == 0 {
		word.Or(mark)
	}
}

// Slots returns how many series the block can have.
func (b *Block) Slots() int { return len(b.values) }

// Fetch reads what Set does, without waiting for it. The result means nothing.
func (b *Block) Fetch(slot uint32) uint64 { return b.values[slot].Load() + b.dirty[slot/64].Load() }

// Value returns the value of a series.
func (b *Block) Value(slot uint32) float64 {
	return math.Float64frombits(b.values[slot].Load())
}

// Show replaces the line of a series. prefix is its new beginning: the name, the labels
// in braces if there are any, and one blank. key decides in which shard it is.
func (b *Block) Show(slot uint32, prefix []byte, key metrics.ShardKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLineLocked(slot)
	b.addLineLocked(slot, prefix, key)
}

// Hide removes the line of a series. Scrapes under way still show it. The series
// keeps its value. Hide returns its block and slot from now on.
func (b *Block) Hide(slot uint32) (*Block, uint32) {
	v := b.Value(slot)
	if b.retireLine(slot) {
		return b.family.Add(nil, 0, v)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLineLocked(slot)
	return b, slot
}

// Retire removes a series. Scrapes under way still show its line as it was.
func (b *Block) Retire(slot uint32) {
	if !b.retireLine(slot) {
		b.Remove(slot)
	}
}

// retireLine hides the line from the scrapes that begin later. It returns false if
// no scrape is under way.
func (b *Block) retireLine(slot uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	last, ok := b.family.generations.retireLine(b, slot)
	if !ok {
		return false
	}
	if b.lastShown == nil {
		b.lastShown = make(map[uint32]uint32)
	}
	b.lastShown[slot] = last
	b.version++
	return true
}

// showsLocked reports whether a scrape shows the line of a slot, if it has one.
func (b *Block) showsLocked(slot int, view view) bool {
	if l := b.lines[slot]; l.generation >= view.generation || view.keys != nil && !view.keys[l.key] {
		return false
	}
	if len(b.lastShown) == 0 {
		return true
	}
	last, dead := b.lastShown[uint32(slot)]
	return !dead || view.generation <= last
}

// showsAllLocked reports whether a scrape shows all lines.
func (b *Block) showsAllLocked(view view) bool {
	return b.newest < view.generation && len(b.lastShown) == 0 && view.keys == nil
}

// Remove frees the slot of a series. Another series may get it at once.
func (b *Block) Remove(slot uint32) {
	b.family.remove(b, slot)
}

// hasRoomLocked reports whether the block has room for one more series.
func (b *Block) hasRoomLocked() bool {
	return !b.fullLocked() && b.text.size() < blockBytes
}

// fullLocked reports whether no slot is free.
func (b *Block) fullLocked() bool {
	return len(b.free) == 0 && len(b.lines) == cap(b.lines)
}

// takeLocked returns a slot for a new series.
func (b *Block) takeSlotLocked() uint32 {
	b.live++
	if n := len(b.free); n > 0 {
		slot := b.free[n-1]
		b.free = b.free[:n-1]
		return uint32(slot)
	}
	b.lines = append(b.lines, line{})
	b.text.spans = append(b.text.spans, span{})
	return uint32(len(b.lines) - 1)
}

func (b *Block) freeSlotLocked(slot uint32) {
	b.dropLineLocked(slot)
	b.free = append(b.free, uint16(slot))
	b.live--
}

// addLineLocked renders the line of a slot that has none.
func (b *Block) addLineLocked(slot uint32, prefix []byte, key metrics.ShardKey) {
	var scratch [metrics.MaxValueBytes]byte
	value := metrics.AppendTextValue(scratch[:0], b.Value(slot))
	width := max(minWidth, (len(value)+1)&^1)
	size := len(prefix) + width + 1
	b.text.growFor(size)
	b.text.spans[slot] = span{start: uint32(len(b.text.buf)), size: uint32(size)}
	b.text.buf = appendLine(b.text.buf, prefix, value, width)
	b.lines[slot] = line{generation: b.family.generations.current(), width: uint8(width), key: key}
	b.newest = max(b.newest, b.lines[slot].generation)
	b.version++
	if b.proto != nil {
		b.proto.addMetric(b, slot)
	}
}

func (b *Block) dropLineLocked(slot uint32) {
	b.text.dropSpan(slot)
	b.lines[slot] = line{}
	delete(b.lastShown, slot)
	b.version++
	if b.proto != nil {
		b.proto.dropSpan(slot)
	}
}

// prefixLocked returns what a slot's line begins with.
func (b *Block) prefixLocked(slot uint32) []byte {
	l := b.text.bytes(slot)
	return l[:len(l)-int(b.lines[slot].width)-1]
}

// collectDirtyLocked moves the marks of 64 slots into the stale bits of the lines
// and metrics.
func (b *Block) collectDirtyLocked(word int) {
	if b.dirty[word].Load() == 0 {
		return
	}
	marks := b.dirty[word].Swap(0)
	b.stale[word] |= marks
	if b.proto != nil {
		b.proto.stale[word] |= marks
	}
	b.version++
}

// patchLocked writes the values of 64 slots into their lines. Lines whose field is
// too narrow stay stale.
func (b *Block) patchLocked(word int) {
	b.collectDirtyLocked(word)
	if b.stale[word] == 0 {
		return
	}
	b.text.copyOnWrite()
	narrow := uint64(0)
	for marks := b.stale[word]; marks != 0; marks &= marks - 1 {
		slot := uint32(word*64 + bits.TrailingZeros64(marks))
		if int(slot) >= len(b.lines) || b.text.spans[slot].size == 0 {
			continue
		}
		l, width := b.text.bytes(slot), int(b.lines[slot].width)
		if !metrics.PutTextValue(l[len(l)-1-width:len(l)-1], b.Value(slot)) {
			narrow |= marks & -marks
		}
	}
	b.stale[word] = narrow
}

// widenLocked renders the stale lines, whose field is too narrow. It copies all
// others without holes: one line costs the same as all. It follows patchLocked, which
// left no borrower of the bytes.
func (b *Block) widenLocked() {
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	buf := (*scratch)[:0]
	for i := range b.lines {
		slot, start := uint32(i), len(buf)
		switch {
		case b.text.spans[i].size == 0:
		case b.stale[i/64]&(1<<(i%64)) == 0:
			buf = append(buf, b.text.bytes(slot)...)
		default:
			var digits [metrics.MaxValueBytes]byte
			value := metrics.AppendTextValue(digits[:0], b.Value(slot))
			prefix := b.prefixLocked(slot)
			// Values that outgrow their field once tend to do so again.
			b.lines[i].width = max(b.lines[i].width, uint8(len(value)+3)&^3)
			buf = appendLine(buf, prefix, value, int(b.lines[i].width))
		}
		b.text.spans[i] = span{start: uint32(start), size: uint32(len(buf) - start)}
	}
	clear(b.stale)
	if len(buf) > cap(b.text.buf) {
		b.text.replaceBuffer(make([]byte, 0, len(buf)+len(buf)/64))
	}
	b.text.buf, b.text.holes = append(b.text.buf[:0], buf...), 0
	*scratch = buf
}

func appendLine(dst, prefix, value []byte, width int) []byte {
	dst = append(dst, prefix...)
	for range width - len(value) {
		dst = append(dst, ' ')
	}
	dst = append(dst, value...)
	return append(dst, '\n')
}

func (b *Block) textSize(view view) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sizeLocked(&b.text, view)
}

// sizeLocked returns the size of the spans for the scrape.
func (b *Block) sizeLocked(p *spanBuffer, view view) int {
	if b.showsAllLocked(view) {
		return p.size()
	}
	size := 0
	for i := range b.lines {
		if b.showsLocked(i, view) {
			size += int(p.spans[i].size)
		}
	}
	return size
}

func (b *Block) appendText(dst []byte, view view) ([]byte, reading) {
	b.patch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renderLocked()
	r := b.readingLocked(view)
	if b.text.holes == 0 && r.whole {
		return append(dst, b.text.buf...), r
	}
	for i := range b.lines {
		if b.showsLocked(i, view) {
			dst = append(dst, b.text.bytes(uint32(i))...)
		}
	}
	return dst, r
}

// borrowText returns nil if the scrape does not show all lines, or there are none.
func (b *Block) borrowText(view view) (lines []byte, borrowers *atomic.Int32) {
	b.patch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renderLocked()
	if !b.showsAllLocked(view) || b.text.size() == 0 {
		return nil, nil
	}
	return b.text.borrow()
}

// patch does most of the rendering in steps, each under the lock for 64 slots.
func (b *Block) patch() {
	for word := range b.dirty {
		b.mu.Lock()
		b.patchLocked(word)
		b.mu.Unlock()
	}
}

// renderLocked writes all values into their lines.
func (b *Block) renderLocked() {
	narrow := uint64(0)
	for word := range b.dirty {
		b.patchLocked(word)
		narrow |= b.stale[word]
	}
	if narrow != 0 {
		b.widenLocked()
	}
	b.text.compact(b.fullLocked())
}
