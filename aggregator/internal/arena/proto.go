package arena

import (
	"math/bits"
	"sync/atomic"

	"github.com/coder/agentstatsd/metrics"
)

// protoStep is how many metrics are made under the lock at a time, at 200 ns each.
const protoStep = 64

// protoLines has a block's lines as metric fields of a MetricFamily.
type protoLines struct {
	spanBuffer
	typ metrics.Type
	// made is the number of slots whose metrics were made.
	made int
	// stale has a bit for each metric that is older than its value, beside those in
	// Block.dirty.
	stale []uint64
}

// whole reports whether all lines have their metrics.
func (p *protoLines) whole() bool { return p != nil && p.made == len(p.spans) }

// addMetric makes the metric of a slot from its line.
func (p *protoLines) addMetric(b *Block, slot uint32) {
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
	p.putSpan(slot, metrics.AppendProtoMetric(scratch[:0], labels, p.typ, b.Value(slot)))
}

// makeProto makes the block's metrics if it has none.
func (b *Block) makeProto(t metrics.Type) {
	for whole := false; !whole; {
		b.mu.Lock()
		whole = b.makeSomeProtoLocked(t)
		b.mu.Unlock()
	}
}

// makeSomeProtoLocked makes up to protoStep of the missing metrics. It reports
// whether none is missing.
func (b *Block) makeSomeProtoLocked(t metrics.Type) bool {
	p := b.proto
	if p == nil {
		p = &protoLines{
			spanBuffer: spanBuffer{spans: make([]span, cap(b.lines))},
			typ:        t,
			stale:      make([]uint64, len(b.stale)),
		}
		b.proto = p
		// A block without series has been removed from its family.
		if b.live > 0 {
			b.family.generations.addProtoBlock(b)
		}
	}
	if p.whole() {
		return true
	}
	from := p.made
	p.made = min(from+protoStep, len(p.spans))
	for slot := from; slot < min(p.made, len(b.lines)); slot++ {
		if b.text.spans[slot].size > 0 {
			p.addMetric(b, uint32(slot))
		}
	}
	if p.made < len(b.lines) {
		if from == 0 {
			// The other metrics are about as long: room for them and 1/32.
			p.reserve(p.size() * (len(b.lines) - p.made) / p.made * 33 / 32)
		}
		return false
	}
	p.made = len(p.spans)
	p.compact(b.fullLocked())
	return true
}

// dropProto drops the metrics.
func (b *Block) dropProto() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.proto = nil
}

func (b *Block) protoSize(view view, t metrics.Type) int {
	b.mu.Lock()
	empty := b.live == 0
	b.mu.Unlock()
	if empty {
		return 0
	}
	b.makeProto(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.makeSomeProtoLocked(t) { // it was taken away meanwhile
	}
	return b.sizeLocked(&b.proto.spanBuffer, view)
}

// appendProto appends metrics of type t for the lines of the scrape. It appends size
// bytes, which protoSize returned for this scrape: padding replaces what was removed
// since. A line that was added since is not shown.
func (b *Block) appendProto(dst []byte, view view, t metrics.Type, size int) ([]byte, reading) {
	b.makeProto(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.renderProtoLocked(t)
	r := b.readingLocked(view)
	end := len(dst) + size
	if p.holes == 0 && r.whole {
		dst = append(dst, p.buf...)
	} else {
		for i := range b.lines {
			if b.showsLocked(i, view) {
				dst = append(dst, p.bytes(uint32(i))...)
			}
		}
	}
	return metrics.AppendProtoPadding(dst, end-len(dst)), r
}

// borrowProto returns nil if the scrape does not show all metrics, or if some were
// removed since protoSize.
func (b *Block) borrowProto(view view, t metrics.Type, size int) (made []byte, borrowers *atomic.Int32) {
	b.makeProto(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.renderProtoLocked(t)
	if !b.showsAllLocked(view) || p.size() != size {
		return nil, nil
	}
	return p.borrow()
}

// renderProtoLocked returns the block's metrics with their newest type and values.
func (b *Block) renderProtoLocked(t metrics.Type) *protoLines {
	for !b.makeSomeProtoLocked(t) { // it was taken away meanwhile
	}
	p := b.proto
	if p.typ != t {
		p.typ = t
		p.copyOnWrite()
		for i := range p.spans {
			if p.spans[i].size > 0 {
				metrics.SetProtoMetricType(p.bytes(uint32(i)), t)
			}
		}
	}
	for word := range b.dirty {
		b.collectDirtyLocked(word)
		if p.stale[word] == 0 {
			continue
		}
		p.copyOnWrite()
		for marks := p.stale[word]; marks != 0; marks &= marks - 1 {
			slot := uint32(word*64 + bits.TrailingZeros64(marks))
			if p.spans[slot].size > 0 {
				metrics.SetProtoMetricValue(p.bytes(slot), b.Value(slot))
			}
		}
		p.stale[word] = 0
	}
	p.compact(b.fullLocked())
	return p
}
