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
	// line a block's text is 100 KB: copied in some 10 us, which is the longest
	// that a new series waits for a scrape.
	blockSlots = 512
	// firstSlots and slotGrowth make a family's first blocks hold 8 and 64
	// series, so that a family of one series costs 500 bytes and not 13 KB.
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
// Values are stored without a lock, and only marked: the lines are patched when
// they are next written out.
type Block struct {
	family *Family
	values []atomic.Uint64
	// dirty has a bit for each slot whose value is newer than its line.
	dirty []atomic.Uint64

	mu    sync.Mutex
	lines []line
	// text has the lines, in no order, and holes bytes that are in none.
	text  []byte
	holes int
	// free are slots below len(lines) that were given back.
	free []uint16
	live int
	// youngest is the highest born of any line.
	youngest uint32

	// listed is whether the family's list of blocks with room has this one. It
	// is guarded by the family's mutex.
	listed bool
}

// line is where a slot's line is: prefix, value, newline. A hidden or free slot
// has size 0.
type line struct {
	start, size uint32
	// born is the clock at the time when the line last came to be.
	born uint32
	// width of the value's field, in which the value stands at the right.
	width uint8
}

func newBlock(f *Family, slots int) *Block {
	return &Block{
		family: f,
		values: make([]atomic.Uint64, slots),
		dirty:  make([]atomic.Uint64, (slots+63)/64),
		lines:  make([]line, 0, slots),
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
	// A scrape clears the mark before it reads the value, so a mark that is
	// still there covers this store too.
	mark, word := uint64(1)<<(slot%64), &b.dirty[slot/64]
	if word.Load()&mark == 0 {
		word.Or(mark)
	}
}

// Value returns the value of a series.
func (b *Block) Value(slot uint32) float64 {
	return math.Float64frombits(b.values[slot].Load())
}

// Show gives a series a line that begins with prefix (name, labels in braces if
// there are any, one blank), instead of the one that it has, if any.
func (b *Block) Show(slot uint32, prefix []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLineLocked(slot)
	b.addLineLocked(slot, prefix)
}

// Hide takes the line of a series away. Its value is kept.
func (b *Block) Hide(slot uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLineLocked(slot)
}

// Remove gives up a series. Its slot may become another's at once.
func (b *Block) Remove(slot uint32) {
	b.family.remove(b, slot)
}

// roomLocked reports whether the block can take one more series.
func (b *Block) roomLocked() bool {
	return (len(b.free) > 0 || len(b.lines) < cap(b.lines)) && len(b.text)-b.holes < blockBytes
}

// takeLocked returns a slot for a new series.
func (b *Block) takeLocked() uint32 {
	b.live++
	if n := len(b.free); n > 0 {
		slot := b.free[n-1]
		b.free = b.free[:n-1]
		return uint32(slot)
	}
	b.lines = append(b.lines, line{})
	return uint32(len(b.lines) - 1)
}

func (b *Block) giveBackLocked(slot uint32) {
	b.dropLineLocked(slot)
	b.free = append(b.free, uint16(slot))
	b.live--
}

// addLineLocked renders the line of a slot that has none.
func (b *Block) addLineLocked(slot uint32, prefix []byte) {
	var scratch [metrics.MaxValueBytes]byte
	value := metrics.AppendTextValue(scratch[:0], b.Value(slot))
	width := max(minWidth, (len(value)+1)&^1)
	b.growLocked(len(prefix) + width + 1)
	start := len(b.text)
	b.text = append(b.text, prefix...)
	b.text = appendPadded(b.text, value, width)
	b.text = append(b.text, '\n')
	born := b.family.clock.now()
	b.lines[slot] = line{
		start: uint32(start),
		size:  uint32(len(b.text) - start),
		born:  born,
		width: uint8(width),
	}
	b.youngest = max(b.youngest, born)
}

func (b *Block) dropLineLocked(slot uint32) {
	b.holes += int(b.lines[slot].size)
	b.lines[slot] = line{}
}

// growLocked makes room for n more bytes of text. It closes the holes when it
// has to move the text anyway.
func (b *Block) growLocked(n int) {
	if len(b.text)+n <= cap(b.text) {
		return
	}
	need := len(b.text) - b.holes + n
	b.moveLocked(need + need/8)
}

// moveLocked copies the lines to a text of the given capacity, without holes.
func (b *Block) moveLocked(capacity int) {
	text := make([]byte, 0, capacity)
	for i := range b.lines {
		l := &b.lines[i]
		if l.size == 0 {
			continue
		}
		start := len(text)
		text = append(text, b.text[l.start:l.start+l.size]...)
		l.start = uint32(start)
	}
	b.text, b.holes = text, 0
}

// tightenLocked gives back memory: of a block that was filled, the room to
// grow; of one that lost many lines, their holes.
func (b *Block) tightenLocked() {
	used := len(b.text) - b.holes
	full := len(b.free) == 0 && len(b.lines) == cap(b.lines)
	if b.holes > used/4 || full && cap(b.text)-used > used/16 {
		b.moveLocked(used + used/64)
	}
}

// patchLocked brings the lines up to date with the values.
func (b *Block) patchLocked() {
	var scratch [metrics.MaxValueBytes]byte
	for w := range b.dirty {
		if b.dirty[w].Load() == 0 {
			continue
		}
		for marks := b.dirty[w].Swap(0); marks != 0; marks &= marks - 1 {
			slot := uint32(w*64 + bits.TrailingZeros64(marks))
			if int(slot) >= len(b.lines) || b.lines[slot].size == 0 {
				continue
			}
			value := metrics.AppendTextValue(scratch[:0], b.Value(slot))
			l := &b.lines[slot]
			if len(value) > int(l.width) {
				b.widenLocked(slot, len(value))
			}
			end := int(l.start+l.size) - 1
			field := b.text[end-int(l.width) : end]
			blanks := len(field) - len(value)
			for i := range blanks {
				field[i] = ' '
			}
			copy(field[blanks:], value)
		}
	}
}

// widenLocked moves a line to the end of the text, with a wider field.
func (b *Block) widenLocked(slot uint32, width int) {
	// Values that outgrow their field once tend to do so again.
	width = (width + 3) &^ 3
	l := &b.lines[slot]
	size := int(l.size) - int(l.width) + width
	b.growLocked(size)
	start := len(b.text)
	b.text = append(b.text, b.text[l.start:l.start+l.size-uint32(l.width)-1]...)
	b.text = appendPadded(b.text, nil, width)
	b.text = append(b.text, '\n')
	b.holes += int(l.size)
	l.start, l.size, l.width = uint32(start), uint32(size), uint8(width)
}

func appendPadded(dst, value []byte, width int) []byte {
	for range width - len(value) {
		dst = append(dst, ' ')
	}
	return append(dst, value...)
}

// appendText appends the lines born before stamp.
func (b *Block) appendText(dst []byte, stamp uint32) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.patchLocked()
	b.tightenLocked()
	if b.holes == 0 && b.youngest < stamp {
		return append(dst, b.text...)
	}
	for i := range b.lines {
		if l := &b.lines[i]; l.size > 0 && l.born < stamp {
			dst = append(dst, b.text[l.start:l.start+l.size]...)
		}
	}
	return dst
}

// appendProto appends metrics for the lines born before stamp. nameLen is the
// length of the family's name.
func (b *Block) appendProto(dst []byte, stamp uint32, nameLen int, t metrics.Type) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.lines {
		l := &b.lines[i]
		if l.size == 0 || l.born >= stamp {
			continue
		}
		labels := b.text[int(l.start)+nameLen : l.start+l.size-uint32(l.width)-1]
		if len(labels) > 3 { // {, }, blank
			labels = labels[1 : len(labels)-2]
		} else {
			labels = nil
		}
		dst = metrics.AppendProtoMetric(dst, labels, t, b.Value(uint32(i)))
	}
	return dst
}
