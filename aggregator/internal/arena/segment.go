package arena

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coder/agentstatsd/metrics"
)

// format is an exposition format.
type format uint8

const (
	formatText format = iota
	formatProto
	formats
)

// reading describes what a scrape read of a block.
type reading struct {
	// whole is true if all lines were shown.
	whole bool
	// newest and version are the block's.
	newest, version uint32
}

func (b *Block) readingLocked(view view) reading {
	return reading{whole: b.showsAllLocked(view), newest: b.newest, version: b.version}
}

// part is what a scrape reads at a time: a block, or the rows that a group has of a family.
type part interface {
	// textSize returns the size of the text if it has lines for the scrape, else 0. The
	// size may change before the text is appended.
	textSize(view view) int
	appendText(dst []byte, view view) ([]byte, reading)
	// borrowText returns the lines and the count of their borrowers, which the caller
	// decrements when it has read them. It returns nil if they have to be copied.
	borrowText(view view) (lines []byte, borrowers *atomic.Int32)

	// protoSize returns how many bytes appendProto appends, padding replaces what was
	// removed meanwhile.
	protoSize(view view, t metrics.Type) int
	appendProto(dst []byte, view view, t metrics.Type, size int) ([]byte, reading)
	borrowProto(view view, t metrics.Type, size int) (made []byte, borrowers *atomic.Int32)

	// unchanged reports whether lines and values are as they were when r was read.
	unchanged(r reading) bool
	sharing() *sharing
}

var (
	_ part = (*Block)(nil)
	_ part = (*Rows)(nil)
)

func (b *Block) unchanged(r reading) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for word := range b.dirty {
		b.collectDirtyLocked(word)
	}
	return b.version == r.version
}

// segment is one part in one scrape. It is used once.
type segment struct {
	part   part
	format format
	view   view
	typ    metrics.Type
	// size is the number of bytes to append, exact for protobuf and about that for
	// text.
	size int
	// borrowers is decremented when the borrowed bytes are released.
	borrowers *atomic.Int32
}

var segments = sync.Pool{New: func() any { return new(segment) }}

// Borrow implements metrics.Segment. It returns the part's bytes if the scrape shows
// all its lines.
func (s *segment) Borrow() []byte {
	var data []byte
	if s.format == formatProto {
		data, s.borrowers = s.part.borrowProto(s.view, s.typ, s.size)
	} else {
		data, s.borrowers = s.part.borrowText(s.view)
	}
	return data
}

// Release implements metrics.Segment.
func (s *segment) Release() {
	s.borrowers.Add(-1)
	s.recycle()
}

// AppendTo implements metrics.Segment.
func (s *segment) AppendTo(dst []byte) []byte {
	dst, _ = s.read(dst)
	s.recycle()
	return dst
}

// Deflated implements metrics.Segment. Another scrape may have compressed the
// segment.
func (s *segment) Deflated(d *metrics.Deflater) metrics.Deflated {
	defer s.recycle()
	if sh := s.part.sharing().by(s.format); sh != nil {
		return sh.deflated(s, d)
	}
	d.Raw, _ = s.read(d.Raw[:0])
	return d.Deflate(d.Raw)
}

func (s *segment) read(dst []byte) ([]byte, reading) {
	dst = slices.Grow(dst, s.size+s.size/8) // not under the lock
	if s.format == formatProto {
		return s.part.appendProto(dst, s.view, s.typ, s.size)
	}
	return s.part.appendText(dst, s.view)
}

func (s *segment) recycle() {
	*s = segment{}
	segments.Put(s)
}

// shared is the compressed segment of a part in one format, which concurrent
// scrapes share.
type shared struct {
	// mu is held while a segment is made. Other scrapes wait for the segment.
	mu sync.Mutex
	// data is nil while there is none.
	data metrics.Deflated
	typ  metrics.Type
	// generation is the newest one before the part was read. was describes what
	// was read.
	generation uint32
	was        reading
}

// sharing has what concurrent scrapes share of a part, by format. It is nil while fewer
// than two compress.
type sharing struct {
	generations *Generations
	formats     [formats]atomic.Pointer[shared]
}

func (b *Block) sharing() *sharing { return &b.shared }

// by returns what scrapes in a format share. It returns nil if only one compresses.
func (s *sharing) by(f format) *shared {
	if sh := s.formats[f].Load(); sh != nil {
		return sh
	}
	if !s.generations.addSharing(s) {
		return nil
	}
	s.formats[f].CompareAndSwap(nil, new(shared))
	// It is nil if the other scrape ended meanwhile.
	return s.formats[f].Load()
}

// drop drops what scrapes shared.
func (s *sharing) drop() {
	for f := range s.formats {
		s.formats[f].Store(nil)
	}
}

// deflated returns the shared segment if it fits s, else makes it.
func (sh *shared) deflated(s *segment, d *metrics.Deflater) metrics.Deflated {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.fits(s) {
		return sh.data
	}
	at := s.part.sharing().generations.current()
	var was reading
	d.Raw, was = s.read(d.Raw[:0])
	out := d.Deflate(d.Raw)
	if was.whole {
		sh.data, sh.typ, sh.generation, sh.was = out, s.typ, at, was
		sh.data.Data = bytes.Clone(out.Data)
	}
	return out
}

// fits reports whether the shared segment could have been made for s. All its lines
// are of earlier generations. It was made since s's scrape began, or its part is
// unchanged.
func (sh *shared) fits(s *segment) bool {
	if sh.data.Data == nil || sh.was.newest >= s.view.generation {
		return false
	}
	if s.format == formatProto && (sh.typ != s.typ || sh.data.Size != int64(s.size)) {
		return false
	}
	return sh.generation >= s.view.generation || s.part.unchanged(sh.was)
}
