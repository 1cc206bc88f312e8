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
	// series, so that a family of one series costs 600 bytes and not 13 KB.
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
	// dirty has a bit for each slot whose value was set since a scrape last
	// looked.
	dirty []atomic.Uint64
	// shared has what concurrent scrapes share, by format. It is nil while there
	// is at most one.
	shared [formats]atomic.Pointer[shared]

	mu    sync.Mutex
	lines []line
	// text has the lines, and stale a bit for each one that is older than its
	// value, beside those in dirty.
	text  pieces
	stale []uint64
	// proto is nil unless protobuf is scraped.
	proto *protoForm
	// version counts the changes that were seen of what the block shows.
	version uint32
	// free are slots below len(lines) that were given back.
	free []uint16
	live int
	// youngest is the highest born of any line.
	youngest uint32
	// deaths has when lines were retired, by slot. It is mostly empty.
	deaths map[uint32]uint32

	// listed is whether the family's list of blocks with room has this one. It
	// is guarded by the family's mutex.
	listed bool
}

// line is what is known of a slot's line, which is a prefix, the value and a
// newline. A hidden or free slot has none.
type line struct {
	// born is the clock at the time when the line last came to be.
	born uint32
	// width of the value's field, in which the value stands at the right.
	width uint8
}

func newBlock(f *Family, slots int) *Block {
	words := (slots + 63) / 64
	return &Block{
		family: f,
		values: make([]atomic.Uint64, slots),
		dirty:  make([]atomic.Uint64, words),
		stale:  make([]uint64, words),
		lines:  make([]line, 0, slots),
		text:   pieces{at: make([]extent, 0, slots)},
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

// Hide takes the line of a series away, but for the scrapes that are under way.
// It returns where the series, whose value is kept, is from now on.
func (b *Block) Hide(slot uint32) (*Block, uint32) {
	v := b.Value(slot)
	if b.retire(slot) {
		return b.family.Add(nil, v)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLineLocked(slot)
	return b, slot
}

// Retire is Remove, but for the scrapes that are under way: they show the line as
// it was.
func (b *Block) Retire(slot uint32) {
	if !b.retire(slot) {
		b.Remove(slot)
	}
}

// retire has the line shown by the scrapes under way only; false if there are
// none.
func (b *Block) retire(slot uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	died, ok := b.family.clock.retire(b, slot)
	if !ok {
		return false
	}
	if b.deaths == nil {
		b.deaths = make(map[uint32]uint32)
	}
	b.deaths[slot] = died
	b.version++
	return true
}

// showsLocked tells whether a scrape shows the line of a slot, if there is one.
func (b *Block) showsLocked(slot int, stamp uint32) bool {
	if b.lines[slot].born >= stamp {
		return false
	}
	if len(b.deaths) == 0 {
		return true
	}
	died, dead := b.deaths[uint32(slot)]
	return !dead || stamp <= died
}

// wholeLocked tells whether a scrape shows all lines.
func (b *Block) wholeLocked(stamp uint32) bool {
	return b.youngest < stamp && len(b.deaths) == 0
}

// Remove gives up a series. Its slot may become another's at once.
func (b *Block) Remove(slot uint32) {
	b.family.remove(b, slot)
}

// roomLocked reports whether the block can take one more series.
func (b *Block) roomLocked() bool {
	return !b.fullLocked() && b.text.size() < blockBytes
}

// fullLocked reports whether all slots are taken.
func (b *Block) fullLocked() bool {
	return len(b.free) == 0 && len(b.lines) == cap(b.lines)
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
	b.text.at = append(b.text.at, extent{})
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
	size := len(prefix) + width + 1
	b.text.grow(size)
	b.text.at[slot] = extent{start: uint32(len(b.text.buf)), size: uint32(size)}
	b.text.buf = appendLine(b.text.buf, prefix, value, width)
	b.lines[slot] = line{born: b.family.clock.now(), width: uint8(width)}
	b.youngest = max(b.youngest, b.lines[slot].born)
	b.version++
	if b.proto != nil {
		b.proto.add(b, slot)
	}
}

func (b *Block) dropLineLocked(slot uint32) {
	b.text.drop(slot)
	b.lines[slot] = line{}
	delete(b.deaths, slot)
	b.version++
	if b.proto != nil {
		b.proto.drop(slot)
	}
}

// prefixLocked returns what a slot's line begins with.
func (b *Block) prefixLocked(slot uint32) []byte {
	l := b.text.piece(slot)
	return l[:len(l)-int(b.lines[slot].width)-1]
}

// lookLocked notes which lines and metrics of 64 slots are older than their
// values.
func (b *Block) lookLocked(word int) {
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

// patchLocked brings the lines of 64 slots up to date with the values. Those
// whose field is too narrow stay stale.
func (b *Block) patchLocked(word int) {
	b.lookLocked(word)
	if b.stale[word] == 0 {
		return
	}
	b.text.own()
	narrow := uint64(0)
	for marks := b.stale[word]; marks != 0; marks &= marks - 1 {
		slot := uint32(word*64 + bits.TrailingZeros64(marks))
		if int(slot) >= len(b.lines) || b.text.at[slot].size == 0 {
			continue
		}
		l, width := b.text.piece(slot), int(b.lines[slot].width)
		if !metrics.PutTextValue(l[len(l)-1-width:len(l)-1], b.Value(slot)) {
			narrow |= marks & -marks
		}
	}
	b.stale[word] = narrow
}

// widenLocked makes stale lines anew whose field is too narrow. All others are
// copied, without holes, so that it costs the same for one line and for all. It
// follows patchLocked, which has seen to it that nobody reads the bytes.
func (b *Block) widenLocked() {
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	buf := (*scratch)[:0]
	for i := range b.lines {
		slot, start := uint32(i), len(buf)
		switch {
		case b.text.at[i].size == 0:
		case b.stale[i/64]&(1<<(i%64)) == 0:
			buf = append(buf, b.text.piece(slot)...)
		default:
			var digits [metrics.MaxValueBytes]byte
			value := metrics.AppendTextValue(digits[:0], b.Value(slot))
			prefix := b.prefixLocked(slot)
			// Values that outgrow their field once tend to do so again.
			b.lines[i].width = max(b.lines[i].width, uint8(len(value)+3)&^3)
			buf = appendLine(buf, prefix, value, int(b.lines[i].width))
		}
		b.text.at[i] = extent{start: uint32(start), size: uint32(len(buf) - start)}
	}
	clear(b.stale)
	if len(buf) > cap(b.text.buf) {
		b.text.replace(make([]byte, 0, len(buf)+len(buf)/64))
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

// textSize returns the size of the text if it has lines for the scrape, else 0. By the time the text is appended it may be another.
func (b *Block) textSize(stamp uint32) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wholeLocked(stamp) {
		return b.text.size()
	}
	for i := range b.lines {
		if b.text.at[i].size > 0 && b.showsLocked(i, stamp) {
			return b.text.size()
		}
	}
	return 0
}

// appendText appends the lines for the scrape.
func (b *Block) appendText(dst []byte, stamp uint32) ([]byte, reading) {
	b.patch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renderLocked()
	r := b.readingLocked(stamp)
	if b.text.holes == 0 && r.whole {
		return append(dst, b.text.buf...), r
	}
	for i := range b.lines {
		if b.showsLocked(i, stamp) {
			dst = append(dst, b.text.piece(uint32(i))...)
		}
	}
	return dst, r
}

// lendText returns the lines and what to count down when they are not read any
// more; nil if the scrape does not show all of them, or there are none.
func (b *Block) lendText(stamp uint32) (lines []byte, loans *atomic.Int32) {
	b.patch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renderLocked()
	if !b.wholeLocked(stamp) || b.text.size() == 0 {
		return nil, nil
	}
	return b.text.lend()
}

// patch does most of the rendering, in steps, so that nobody waits for it.
func (b *Block) patch() {
	for word := range b.dirty {
		b.mu.Lock()
		b.patchLocked(word)
		b.mu.Unlock()
	}
}

// renderLocked brings all lines up to date with the values.
func (b *Block) renderLocked() {
	narrow := uint64(0)
	for word := range b.dirty {
		b.patchLocked(word)
		narrow |= b.stale[word]
	}
	if narrow != 0 {
		b.widenLocked()
	}
	b.text.tighten(b.fullLocked())
}
