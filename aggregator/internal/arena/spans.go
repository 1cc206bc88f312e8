package arena

import (
	"slices"
	"sync"
	"sync/atomic"
)

// spanBuffer has at most one span of bytes for each slot, in no order, with holes
// between them. The zero value has no slots.
type spanBuffer struct {
	buf   []byte
	spans []span
	holes int
	// borrowers counts the readers of buf that do not have the block's lock. Its
	// bytes do not change meanwhile. It is nil before the first one.
	borrowers *atomic.Int32
}

// span is a range of the buffer. A slot without bytes has a size of 0.
type span struct{ start, size uint32 }

// size returns the number of bytes in all spans.
func (p *spanBuffer) size() int { return len(p.buf) - p.holes }

// bytes returns the bytes of a slot, which may be none. They are valid until a span
// is added.
func (p *spanBuffer) bytes(slot uint32) []byte {
	at := p.spans[slot]
	return p.buf[at.start : at.start+at.size]
}

// dropSpan removes the span of a slot, if it has one.
func (p *spanBuffer) dropSpan(slot uint32) {
	p.holes += int(p.spans[slot].size)
	p.spans[slot] = span{}
	if p.holes == len(p.buf) {
		if p.borrowed() {
			p.replaceBuffer(nil)
		}
		p.buf, p.holes = p.buf[:0], 0
	}
}

// growFor makes room for n more bytes. A new buffer has an eighth more.
func (p *spanBuffer) growFor(n int) {
	if need := p.size() + n; need > cap(p.buf) {
		p.reserve(n + need/8)
	} else if len(p.buf)+n > cap(p.buf) {
		p.closeHoles()
	}
}

// reserve makes room for exactly n more bytes.
func (p *spanBuffer) reserve(n int) {
	p.moveTo(make([]byte, 0, p.size()+n))
}

// closeHoles moves the spans together.
func (p *spanBuffer) closeHoles() {
	if p.borrowed() {
		p.moveTo(make([]byte, 0, cap(p.buf)))
		return
	}
	scratch := scratches.Get().(*[]byte)
	defer scratches.Put(scratch)
	*scratch = append((*scratch)[:0], p.buf...)
	to := p.buf[:0]
	p.buf = *scratch
	p.moveTo(to)
}

// moveTo appends the spans to buf, which replaces the buffer.
func (p *spanBuffer) moveTo(buf []byte) {
	for i := range p.spans {
		at := &p.spans[i]
		start := len(buf)
		buf = append(buf, p.buf[at.start:at.start+at.size]...)
		at.start = uint32(start)
	}
	p.replaceBuffer(buf)
	p.holes = 0
}

// replaceBuffer replaces the buffer. Borrowers keep the one before.
func (p *spanBuffer) replaceBuffer(buf []byte) {
	p.buf, p.borrowers = buf, nil
}

// borrow returns all spans without holes, and the count of the buffer's borrowers,
// which the caller decrements when it has read them.
func (p *spanBuffer) borrow() (data []byte, borrowers *atomic.Int32) {
	if p.holes > 0 {
		p.closeHoles()
	}
	if p.borrowers == nil {
		p.borrowers = new(atomic.Int32)
	}
	p.borrowers.Add(1)
	return slices.Clip(p.buf), p.borrowers
}

func (p *spanBuffer) borrowed() bool { return p.borrowers != nil && p.borrowers.Load() > 0 }

// copyOnWrite is called before bytes change. It copies a buffer that is borrowed.
func (p *spanBuffer) copyOnWrite() {
	if p.borrowed() {
		p.replaceBuffer(append(make([]byte, 0, cap(p.buf)), p.buf...))
	}
}

// putSpan adds the bytes of a slot that has none.
func (p *spanBuffer) putSpan(slot uint32, data []byte) {
	p.growFor(len(data))
	p.spans[slot] = span{start: uint32(len(p.buf)), size: uint32(len(data))}
	p.buf = append(p.buf, data...)
}

// compact frees memory: the holes if they are many, and of a full block the room to
// grow.
func (p *spanBuffer) compact(full bool) {
	size := p.size()
	if p.holes > size/4 || full && cap(p.buf)-size > size/16 {
		p.reserve(size / 64)
	}
}

// scratches are buffers for bytes that are copied out of a block and back.
var scratches = sync.Pool{New: func() any {
	b := make([]byte, 0, blockBytes)
	return &b
}}
