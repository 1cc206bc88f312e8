package arena

import (
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/metrics"
)

const (
	// chunkBytes is from which size on gathered output is written: two blocks, or
	// the output of many small families in one write.
	chunkBytes = 192 << 10
	// segmentBytes is from which size on a block is worth a segment of its own,
	// which other goroutines make: it takes them some 50 us to compress.
	segmentBytes = 32 << 10
)

// Header is what an exposition says of a family beside its series.
type Header struct {
	Help string
	Type metrics.Type
	// Always has the header written even if there is no series. In text only:
	// consumers of protobuf take a family without metrics for an error.
	Always bool
}

// Scrape writes families in one format. It is not for concurrent use.
type Scrape struct {
	clock  *Clock
	format format
	stamp  uint32
	w      io.Writer
	// segments is w if it takes segments, else nil.
	segments metrics.SegmentWriter
	buf      []byte
	// sizes of the blocks of one family.
	sizes []int
}

var scrapes = sync.Pool{New: func() any { return new(Scrape) }}

// NewText begins a scrape in the text format. It is to be ended by Close.
func NewText(w io.Writer, clock *Clock) *Scrape { return begin(w, clock, formatText) }

// NewProto begins a scrape in delimited protobuf. It is to be ended by Close.
func NewProto(w io.Writer, clock *Clock) *Scrape { return begin(w, clock, formatProto) }

func begin(w io.Writer, clock *Clock, f format) *Scrape {
	s := scrapes.Get().(*Scrape)
	s.clock, s.format, s.w = clock, f, w
	s.segments, _ = w.(metrics.SegmentWriter)
	if s.compresses() {
		clock.beginCompressing()
	}
	s.stamp = clock.begin()
	return s
}

func (s *Scrape) compresses() bool {
	return s.segments != nil && s.segments.Deflates()
}

// Close writes what is left, unless err says that the scrape ended before, and
// returns err or the error of that. The Scrape must not be used afterwards.
func (s *Scrape) Close(err error) error {
	if err == nil {
		err = s.flush()
	}
	if s.compresses() {
		s.clock.endCompressing()
	}
	if s.format == formatProto {
		s.clock.endProto()
	}
	s.clock.end(s.stamp)
	// Neither is large: two chunks, and 16 KB for 1,000,000 series of a family.
	*s = Scrape{buf: s.buf[:0], sizes: s.sizes[:0]}
	scrapes.Put(s)
	return err
}

// Family writes f, in protobuf only if it has series. No lock is held while
// anything is written to w.
func (s *Scrape) Family(f *Family, h Header) error {
	if s.format == formatProto {
		return s.protoFamily(f, h)
	}
	return s.textFamily(f, h)
}

func (s *Scrape) textFamily(f *Family, h Header) error {
	begin, headed := len(s.buf), h.Always
	s.buf = metrics.AppendTextHeader(s.buf, f.name, h.Help, h.Type)
	for _, b := range f.snapshot() {
		size := b.textSize(s.stamp)
		if size == 0 {
			continue
		}
		before := len(s.buf)
		if s.segments != nil && size >= segmentBytes {
			if err := s.segment(b, h.Type, size); err != nil {
				return err
			}
			headed = true
			continue
		}
		s.buf, _ = b.appendText(s.buf, s.stamp)
		headed = headed || len(s.buf) > before
		if headed {
			if err := s.flushFull(); err != nil {
				return err
			}
		}
	}
	if !headed {
		s.buf = s.buf[:begin]
	}
	return nil
}

// protoFamily asks for the sizes of all blocks first: the length of a family is
// its beginning.
func (s *Scrape) protoFamily(f *Family, h Header) error {
	blocks := f.snapshot()
	total := 0
	s.sizes = s.sizes[:0]
	for _, b := range blocks {
		size := b.protoSize(s.stamp, h.Type)
		s.sizes = append(s.sizes, size)
		total += size
	}
	if total == 0 {
		return nil
	}
	total += metrics.SizeProtoHeader(f.name, h.Help, h.Type)
	s.buf = protowire.AppendVarint(s.buf, uint64(total))
	s.buf = metrics.AppendProtoHeader(s.buf, f.name, h.Help, h.Type)
	for i, b := range blocks {
		size := s.sizes[i]
		var err error
		if s.segments != nil && size >= segmentBytes {
			err = s.segment(b, h.Type, size)
		} else if size > 0 {
			s.buf, _ = b.appendProto(s.buf, s.stamp, h.Type, size)
			err = s.flushFull()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// segment has a block written behind what is gathered.
func (s *Scrape) segment(b *Block, t metrics.Type, size int) error {
	if err := s.flush(); err != nil {
		return err
	}
	g := segments.Get().(*segment)
	*g = segment{block: b, format: s.format, stamp: s.stamp, typ: t, size: size}
	return s.segments.WriteSegment(g)
}

// flushFull writes what is gathered if it is enough.
func (s *Scrape) flushFull() error {
	if len(s.buf) < chunkBytes {
		return nil
	}
	return s.flush()
}

func (s *Scrape) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	return err
}
