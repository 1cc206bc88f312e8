package arena

import (
	"slices"
	"sync"
	"sync/atomic"
)

// pieces are byte strings, at most one of each slot, which stand in one buffer
// in no order, with holes where others were. The zero value has no slots.
type pieces struct {
	buf   []byte
	at    []extent
	holes int
	// loans counts who reads buf without the block's lock: meanwhile its bytes
	// stay as they are. It is nil before the first time.
	loans *atomic.Int32
}

// extent is where a piece is. There is none if its size is 0.
type extent struct{ start, size uint32 }

// size is of all pieces together.
func (p *pieces) size() int { return len(p.buf) - p.holes }

// piece returns that of a slot, which is empty if there is none. It is valid
// until pieces are added.
func (p *pieces) piece(slot uint32) []byte {
	at := p.at[slot]
	return p.buf[at.start : at.start+at.size]
}

// drop takes the piece of a slot away, if there is one.
func (p *pieces) drop(slot uint32) {
	p.holes += int(p.at[slot].size)
	p.at[slot] = extent{}
	if p.holes == len(p.buf) {
		if p.lent() {
			p.replace(nil)
		}
		p.buf, p.holes = p.buf[:0], 0
	}
}

// grow makes room for n more bytes, and some more if they do not fit in.
func (p *pieces) grow(n int) {
	if need := p.size() + n; need > cap(p.buf) {
		p.reserve(n + need/8)
	} else if len(p.buf)+n > cap(p.buf) {
		p.close()
	}
}

// reserve makes room for exactly n more bytes.
func (p *pieces) reserve(n int) {
	p.move(make([]byte, 0, p.size()+n))
}

// close closes the holes.
func (p *pieces) close() {
	if p.lent() {
		p.move(make([]byte, 0, cap(p.buf)))
		return
	}
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	*scratch = append((*scratch)[:0], p.buf...)
	to := p.buf[:0]
	p.buf = *scratch
	p.move(to)
}

// move copies the pieces to the end of buf, which takes the place of theirs.
func (p *pieces) move(buf []byte) {
	for i := range p.at {
		at := &p.at[i]
		start := len(buf)
		buf = append(buf, p.buf[at.start:at.start+at.size]...)
		at.start = uint32(start)
	}
	p.replace(buf)
	p.holes = 0
}

// replace gives the pieces another buffer. Whoever reads that which they had
// keeps it.
func (p *pieces) replace(buf []byte) {
	p.buf, p.loans = buf, nil
}

// lend returns all pieces, one behind the other, and what to count down when they
// are not read any more.
func (p *pieces) lend() (data []byte, loans *atomic.Int32) {
	if p.holes > 0 {
		p.close()
	}
	if p.loans == nil {
		p.loans = new(atomic.Int32)
	}
	p.loans.Add(1)
	return slices.Clip(p.buf), p.loans
}

func (p *pieces) lent() bool { return p.loans != nil && p.loans.Load() > 0 }

// own is called before bytes are changed. It makes copies of those that are lent.
func (p *pieces) own() {
	if p.lent() {
		p.replace(append(make([]byte, 0, cap(p.buf)), p.buf...))
	}
}

// put adds the piece of a slot that has none.
func (p *pieces) put(slot uint32, piece []byte) {
	p.grow(len(piece))
	p.at[slot] = extent{start: uint32(len(p.buf)), size: uint32(len(piece))}
	p.buf = append(p.buf, piece...)
}

// tighten gives back memory: of pieces that all are there, the room to grow; of
// those that lost many, the holes.
func (p *pieces) tighten(full bool) {
	size := p.size()
	if p.holes > size/4 || full && cap(p.buf)-size > size/16 {
		p.reserve(size / 64)
	}
}

// scratches are for what is copied out of a block and back.
var scratches = sync.Pool{New: func() any {
	b := make([]byte, 0, blockBytes)
	return &b
}}
