package arena

import "unsafe"

// Footprint returns the bytes that the family's blocks and rows take: the values and lines of its
// series, with room to grow, and what scrapes of protobuf left. The allocator's rounding is
// not in it, nor what concurrent scrapes share while they compress. It takes each
// block's lock once, for some 20 ns.
func (f *Family) Footprint() int {
	n := int(unsafe.Sizeof(*f))
	blocks, rows := f.snapshot()
	for _, b := range blocks {
		n += int(unsafe.Sizeof(b)) + b.footprint()
	}
	for _, r := range rows {
		n += int(unsafe.Sizeof(r)) + r.footprint()
	}
	return n
}

func (b *Block) footprint() int {
	const word = 8
	n := int(unsafe.Sizeof(*b)) + word*(len(b.values)+len(b.dirty))
	b.mu.Lock()
	defer b.mu.Unlock()
	n += cap(b.lines)*int(unsafe.Sizeof(line{})) + word*cap(b.stale) + 2*cap(b.free) + b.text.footprint()
	if p := b.proto; p != nil {
		n += int(unsafe.Sizeof(*p)) + word*cap(p.stale) + p.footprint()
	}
	return n
}

// footprint returns the bytes of the buffer and its spans.
func (p *spanBuffer) footprint() int {
	return cap(p.buf) + cap(p.spans)*int(unsafe.Sizeof(span{}))
}
