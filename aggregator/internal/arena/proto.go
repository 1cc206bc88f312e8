package arena

import (
	"math/bits"
	"sync/atomic"

	"github.com/coder/agentstatsd/metrics"
)

// formStep is how many metrics are made at a time, at 200 ns each, so that
// nobody waits long for it.
const formStep = 64

// protoForm has a block's lines as metric fields of a MetricFamily.
type protoForm struct {
	pieces
	typ metrics.Type
	// made is up to which slot the metrics are there. The rest is on its way
	// unless all are.
	made int
	// stale has a bit for each metric that is older than its value, beside those
	// in Block.dirty.
	stale []uint64
}

// whole reports whether all lines have their metrics.
func (p *protoForm) whole() bool { return p != nil && p.made == len(p.at) }

// add makes the metric of a slot from its line.
func (p *protoForm) add(b *Block, slot uint32) {
	if int(slot) >= p.made {
		return
	}
	labels := b.prefixLocked(slot)[len(b.family.name):]
	if len(labels) > 3 { // {, }, blank
		labels = labels[1 : len(labels)-2]
	} else {
		labels = nil
	}
	var scratch [512]byte
	p.put(slot, metrics.AppendProtoMetric(scratch[:0], labels, p.typ, b.Value(slot)))
}

// formProto gives the block a protobuf form if it has none.
func (b *Block) formProto(t metrics.Type) {
	for whole := false; !whole; {
		b.mu.Lock()
		whole = b.formSomeLocked(t)
		b.mu.Unlock()
	}
}

// formSomeLocked makes some of the metrics that are not there yet, and reports
// whether all are.
func (b *Block) formSomeLocked(t metrics.Type) bool {
	p := b.proto
	if p == nil {
		p = &protoForm{
			pieces: pieces{at: make([]extent, cap(b.lines))},
			typ:    t,
			stale:  make([]uint64, len(b.stale)),
		}
		b.proto = p
		// A block without series is on its way out.
		if b.live > 0 {
			b.family.clock.form(b)
		}
	}
	if p.whole() {
		return true
	}
	from := p.made
	p.made = min(from+formStep, len(p.at))
	for slot := from; slot < min(p.made, len(b.lines)); slot++ {
		if b.text.at[slot].size > 0 {
			p.add(b, uint32(slot))
		}
	}
	if p.made < len(b.lines) {
		if from == 0 {
			// What follows is about as long: room for that and 1/32.
			p.reserve(p.size() * (len(b.lines) - p.made) / p.made * 33 / 32)
		}
		return false
	}
	p.made = len(p.at)
	p.tighten(b.fullLocked())
	return true
}

// unform takes the protobuf form away.
func (b *Block) unform() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.proto = nil
}

// protoSize returns how many bytes appendProto appends.
func (b *Block) protoSize(stamp uint32, t metrics.Type) int {
	b.mu.Lock()
	empty := b.live == 0
	b.mu.Unlock()
	if empty {
		return 0
	}
	b.formProto(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.formSomeLocked(t) { // it was taken away meanwhile
	}
	if b.wholeLocked(stamp) {
		return b.proto.size()
	}
	size := 0
	for i := range b.lines {
		if b.showsLocked(i, stamp) {
			size += int(b.proto.at[i].size)
		}
	}
	return size
}

// appendProto appends metrics of type t for the lines of the scrape, in as
// many bytes as protoSize said after the scrape began: what has gone since then
// is made up for by padding. Nothing can have come.
func (b *Block) appendProto(dst []byte, stamp uint32, t metrics.Type, size int) ([]byte, reading) {
	b.formProto(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.renderProtoLocked(t)
	r := b.readingLocked(stamp)
	end := len(dst) + size
	if p.holes == 0 && r.whole {
		dst = append(dst, p.buf...)
	} else {
		for i := range b.lines {
			if b.showsLocked(i, stamp) {
				dst = append(dst, p.piece(uint32(i))...)
			}
		}
	}
	return metrics.AppendProtoPadding(dst, end-len(dst)), r
}

// lendProto returns the metrics and what to count down when they are not read any
// more; nil if the scrape does not show all, or some have gone since protoSize.
func (b *Block) lendProto(stamp uint32, t metrics.Type, size int) (made []byte, loans *atomic.Int32) {
	b.formProto(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.renderProtoLocked(t)
	if !b.wholeLocked(stamp) || p.size() != size {
		return nil, nil
	}
	return p.lend()
}

// renderProtoLocked returns the block's protobuf form, up to date with type and
// values.
func (b *Block) renderProtoLocked(t metrics.Type) *protoForm {
	for !b.formSomeLocked(t) { // it was taken away meanwhile
	}
	p := b.proto
	if p.typ != t {
		p.typ = t
		p.own()
		for i := range p.at {
			if p.at[i].size > 0 {
				metrics.SetProtoMetricType(p.piece(uint32(i)), t)
			}
		}
	}
	for word := range b.dirty {
		b.lookLocked(word)
		if p.stale[word] == 0 {
			continue
		}
		p.own()
		for marks := p.stale[word]; marks != 0; marks &= marks - 1 {
			slot := uint32(word*64 + bits.TrailingZeros64(marks))
			if p.at[slot].size > 0 {
				metrics.SetProtoMetricValue(p.piece(slot), b.Value(slot))
			}
		}
		p.stale[word] = 0
	}
	p.tighten(b.fullLocked())
	return p
}
