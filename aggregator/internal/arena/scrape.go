package arena

import (
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/metrics"
)

const (
	// chunkBytes is the size from which buffered output is written: two blocks, or
	// many small families in one write.
	chunkBytes = 192 << 10
	// segmentBytes is the size from which a part becomes a segment, which another
	// goroutine compresses in some 50 us.
	segmentBytes = 32 << 10
)

// Header is what an exposition says of a family beside its series.
type Header struct {
	Help string
	Type metrics.Type
	// Always is true if the header is written even without a series. In text only:
	// consumers of protobuf refuse a family without metrics.
	Always bool
	// Joined is a family of the same name and type, whose series come before those
	// of the family; nil: none. No series is in both.
	Joined *metrics.Rendered
}

// Scrape writes families in one format. It is not for concurrent use.
type Scrape struct {
	generations *Generations
	format      format
	view        view
	w           io.Writer
	// segments is w if it writes segments and the scrape is of the whole, else nil.
	segments metrics.SegmentWriter
	buf      []byte
	// parts of one family, and their sizes.
	parts []part
	sizes []int
	// yielded is when others could last run.
	yielded time.Time
}

// view is what one scrape shows of the lines: those that were added before its
// generation, of its shard.
type view struct {
	generation uint32
	// keys has true for those of the shard; nil: all are.
	keys *[256]bool
}

var scrapes = sync.Pool{New: func() any { return new(Scrape) }}

// NewText begins a scrape of a shard in the text format. Close ends it.
func NewText(w io.Writer, generations *Generations, shard metrics.Shard) *Scrape {
	return newScrape(w, generations, shard, formatText)
}

// NewProto begins a scrape of a shard in delimited protobuf. Close ends it.
func NewProto(w io.Writer, generations *Generations, shard metrics.Shard) *Scrape {
	return newScrape(w, generations, shard, formatProto)
}

func newScrape(w io.Writer, generations *Generations, shard metrics.Shard, f format) *Scrape {
	s := scrapes.Get().(*Scrape)
	s.generations, s.format, s.w = generations, f, w
	// A shard's parts of blocks are small: to compress each alone would take longer.
	if shard.Whole() {
		s.segments, _ = w.(metrics.SegmentWriter)
	}
	if s.compresses() {
		generations.beginCompressing()
	}
	s.view = view{generation: generations.beginScrape()}
	if !shard.Whole() {
		// A table, as a division for each line would take as long as to copy it.
		s.view.keys = new([256]bool)
		for key := range s.view.keys {
			s.view.keys[key] = shard.Has(metrics.ShardKey(key))
		}
	}
	return s
}

func (s *Scrape) compresses() bool {
	return s.segments != nil && s.segments.Deflates()
}

// Close writes the buffered output unless err ended the scrape, and returns err or
// the error of the write. The Scrape must not be used afterwards.
func (s *Scrape) Close(err error) error {
	if err == nil {
		err = s.flush()
	}
	if s.compresses() {
		s.generations.endCompressing()
	}
	if s.format == formatProto {
		s.generations.resetProtoTimer()
	}
	s.generations.endScrape(s.view.generation)
	// None is large: 2 chunks, and 48 KB for 1,000,000 series of a family.
	clear(s.parts)
	*s = Scrape{buf: s.buf[:0], parts: s.parts[:0], sizes: s.sizes[:0]}
	scrapes.Put(s)
	return err
}

// Family writes f, in protobuf only if it has series. No lock is held while
// anything is written to w.
func (s *Scrape) Family(f *Family, h Header) error {
	if s.format == formatProto {
		return s.writeProtoFamily(f, h)
	}
	return s.writeTextFamily(f, h)
}

// Rendered writes a family that is rendered.
func (s *Scrape) Rendered(r *metrics.Rendered) error {
	if s.format == formatProto {
		return s.writeRendered(r.Protobuf)
	}
	return s.writeRendered(r.Text)
}

// writeRendered writes bytes behind the buffered output. Many are not copied.
func (s *Scrape) writeRendered(data []byte) error {
	if len(data) < chunkBytes {
		s.buf = append(s.buf, data...)
		return s.flushFull()
	}
	if err := s.flush(); err != nil {
		return err
	}
	_, err := s.w.Write(data)
	return err
}

func (s *Scrape) writeTextFamily(f *Family, h Header) error {
	begin, headed := len(s.buf), h.Always || h.Joined != nil
	s.buf = metrics.AppendTextHeader(s.buf, f.name, h.Help, h.Type)
	if h.Joined != nil {
		if err := s.writeRendered(h.Joined.TextSeries); err != nil {
			return err
		}
	}
	for _, p := range s.partsOf(f) {
		s.yield()
		if s.segments != nil {
			if size := p.textSize(s.view); size >= segmentBytes {
				if err := s.writeSegment(p, h.Type, size); err != nil {
					return err
				}
				headed = true
				continue
			}
		}
		before := len(s.buf)
		s.buf, _ = p.appendText(s.buf, s.view)
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

// yieldEvery is some 50 parts of 20 us.
const yieldEvery = time.Millisecond

// yield lets other goroutines run, between two parts. A goroutine that ran for 10 ms would be
// stopped wherever it is, mostly with the lock of a part: whoever then waits for the lock waits
// for its next turn, behind all other scrapes.
func (s *Scrape) yield() {
	if time.Since(s.yielded) >= yieldEvery {
		runtime.Gosched()
		s.yielded = time.Now()
	}
}

// partsOf returns the present parts of a family. They are valid until the next call.
func (s *Scrape) partsOf(f *Family) []part {
	clear(s.parts)
	s.parts = f.appendParts(s.parts[:0])
	return s.parts
}

// writeProtoFamily computes the sizes of all parts first: the length of a family
// precedes it.
func (s *Scrape) writeProtoFamily(f *Family, h Header) error {
	parts := s.partsOf(f)
	total := 0
	s.sizes = s.sizes[:0]
	for _, p := range parts {
		s.yield()
		size := p.protoSize(s.view, h.Type)
		s.sizes = append(s.sizes, size)
		total += size
	}
	if h.Joined != nil {
		total += len(h.Joined.ProtobufSeries)
	}
	if total == 0 {
		return nil
	}
	total += metrics.SizeProtoHeader(f.name, h.Help, h.Type)
	s.buf = protowire.AppendVarint(s.buf, uint64(total))
	s.buf = metrics.AppendProtoHeader(s.buf, f.name, h.Help, h.Type)
	if h.Joined != nil {
		if err := s.writeRendered(h.Joined.ProtobufSeries); err != nil {
			return err
		}
	}
	for i, p := range parts {
		s.yield()
		size := s.sizes[i]
		var err error
		if s.segments != nil && size >= segmentBytes {
			err = s.writeSegment(p, h.Type, size)
		} else if size > 0 {
			s.buf, _ = p.appendProto(s.buf, s.view, h.Type, size)
			err = s.flushFull()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSegment writes a part behind the buffered output.
func (s *Scrape) writeSegment(p part, t metrics.Type, size int) error {
	if err := s.flush(); err != nil {
		return err
	}
	g := segments.Get().(*segment)
	*g = segment{part: p, format: s.format, view: s.view, typ: t, size: size}
	return s.segments.WriteSegment(g)
}

// flushFull writes the buffered output if it has chunkBytes.
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
