package arena

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coder/agentstatsd/metrics"
)

// format is a form in which a block is written.
type format uint8

const (
	formatText format = iota
	formatProto
	formats
)

// reading says what a scrape read of a block.
type reading struct {
	// whole is true if all lines were shown, as they are in any scrape that is not
	// older than they are.
	whole bool
	// youngest and version are the block's.
	youngest, version uint32
}

func (b *Block) readingLocked(stamp uint32) reading {
	return reading{whole: b.wholeLocked(stamp), youngest: b.youngest, version: b.version}
}

// unchanged reports whether the block shows what it did when r was read.
func (b *Block) unchanged(r reading) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for word := range b.dirty {
		b.lookLocked(word)
	}
	return b.version == r.version
}

// segment is one block's part of one scrape. It is used once.
type segment struct {
	block  *Block
	format format
	stamp  uint32
	typ    metrics.Type
	// size is how much is appended: of protobuf exactly, of text about.
	size int
	// loans is counted down when bytes that were lent are returned.
	loans *atomic.Int32
}

var segments = sync.Pool{New: func() any { return new(segment) }}

// Lend returns the segment's bytes if they stand in the block as they are wanted.
func (s *segment) Lend() []byte {
	var data []byte
	if s.format == formatProto {
		data, s.loans = s.block.lendProto(s.stamp, s.typ, s.size)
	} else {
		data, s.loans = s.block.lendText(s.stamp)
	}
	return data
}

// Return returns what was lent.
func (s *segment) Return() {
	s.loans.Add(-1)
	s.release()
}

// AppendTo appends the segment.
func (s *segment) AppendTo(dst []byte) []byte {
	dst, _ = s.read(dst)
	s.release()
	return dst
}

// Deflated returns the segment compressed, either by d or by another scrape.
func (s *segment) Deflated(d *metrics.Deflater) metrics.Deflated {
	defer s.release()
	if sh := s.block.sharedBy(s.format); sh != nil {
		return sh.deflated(s, d)
	}
	d.Raw, _ = s.read(d.Raw[:0])
	return d.Deflate(d.Raw)
}

func (s *segment) read(dst []byte) ([]byte, reading) {
	dst = slices.Grow(dst, s.size+s.size/8) // not under the lock
	if s.format == formatProto {
		return s.block.appendProto(dst, s.stamp, s.typ, s.size)
	}
	return s.block.appendText(dst, s.stamp)
}

func (s *segment) release() {
	*s = segment{}
	segments.Put(s)
}

// shared is what scrapes that are under way at the same time share of a block in
// one format: the compressed segment.
type shared struct {
	// mu is held while a segment is made: who wants it as well waits for it.
	mu sync.Mutex
	// data is nil as long as there is none.
	data metrics.Deflated
	typ  metrics.Type
	// at is the clock before it was read, and was what was read.
	at  uint32
	was reading
}

// sharedBy returns what scrapes in a format share; nil if only one is under way.
func (b *Block) sharedBy(f format) *shared {
	if sh := b.shared[f].Load(); sh != nil {
		return sh
	}
	if !b.family.clock.share(b) {
		return nil
	}
	b.shared[f].CompareAndSwap(nil, new(shared))
	// It is gone already if the other scrape ended meanwhile.
	return b.shared[f].Load()
}

// unshare lets go of what scrapes shared.
func (b *Block) unshare() {
	for f := range b.shared {
		b.shared[f].Store(nil)
	}
}

// deflated returns what there is, if it fits s, or makes it anew.
func (sh *shared) deflated(s *segment, d *metrics.Deflater) metrics.Deflated {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.fits(s) {
		return sh.data
	}
	at := s.block.family.clock.now()
	var was reading
	d.Raw, was = s.read(d.Raw[:0])
	out := d.Deflate(d.Raw)
	if was.whole {
		sh.data, sh.typ, sh.at, sh.was = out, s.typ, at, was
		sh.data.Data = bytes.Clone(out.Data)
	}
	return out
}

// fits reports whether what there is could have been made for s: nothing in it
// is too young, and it was made since s's scrape began, or is still true.
func (sh *shared) fits(s *segment) bool {
	if sh.data.Data == nil || sh.was.youngest >= s.stamp {
		return false
	}
	if s.format == formatProto && (sh.typ != s.typ || sh.data.Size != int64(s.size)) {
		return false
	}
	return sh.at >= s.stamp || s.block.unchanged(sh.was)
}
