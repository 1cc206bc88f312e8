package arena

import (
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/metrics"
)

// chunkBytes is from which size on gathered output is written: two blocks, or
// the output of many small families in one write.
const chunkBytes = 192 << 10

// Header is what an exposition says of a family beside its series.
type Header struct {
	Help string
	Type metrics.Type
	// Always has the header written even if there is no series. In text only:
	// consumers of protobuf take a family without metrics for an error.
	Always bool
}

// Text writes one scrape in the text format. It is not for concurrent use.
type Text struct {
	w     io.Writer
	stamp uint32
	buf   []byte
}

var texts = sync.Pool{New: func() any { return &Text{buf: make([]byte, 0, 2*chunkBytes)} }}

// NewText begins a scrape. It is to be ended by Close.
func NewText(w io.Writer, clock *Clock) *Text {
	t := texts.Get().(*Text)
	t.w, t.stamp, t.buf = w, clock.begin(), t.buf[:0]
	return t
}

// Family writes f. It holds a block's lock only to copy its lines into memory,
// and none while it writes to w.
func (t *Text) Family(f *Family, h Header) error {
	begin := len(t.buf)
	t.buf = metrics.AppendTextHeader(t.buf, f.name, h.Help, h.Type)
	headed := h.Always
	for _, b := range f.snapshot() {
		before := len(t.buf)
		t.buf = b.appendText(t.buf, t.stamp)
		headed = headed || len(t.buf) > before
		if headed && len(t.buf) >= chunkBytes {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	if !headed {
		t.buf = t.buf[:begin]
	}
	return nil
}

func (t *Text) flush() error {
	_, err := t.w.Write(t.buf)
	t.buf = t.buf[:0]
	return err
}

// Close writes what is left, unless err says that the scrape ended before, and
// returns err or the error of that. The Text must not be used afterwards.
func (t *Text) Close(err error) error {
	if err == nil && len(t.buf) > 0 {
		err = t.flush()
	}
	t.w = nil
	texts.Put(t)
	return err
}

// Proto writes one scrape in delimited protobuf. It is not for concurrent use.
type Proto struct {
	w     io.Writer
	stamp uint32
	// out gathers families.
	out []byte
	// chunks have one family, whose length goes before it; the first used are.
	chunks [][]byte
	used   int
}

var protos = sync.Pool{New: func() any { return &Proto{} }}

// NewProto begins a scrape. It is to be ended by Close.
func NewProto(w io.Writer, clock *Clock) *Proto {
	p := protos.Get().(*Proto)
	p.w, p.stamp, p.out = w, clock.begin(), p.out[:0]
	return p
}

// Family writes f, if it has series. The whole family is held in memory at a
// time: its length is its beginning, and series may come and go.
func (p *Proto) Family(f *Family, h Header) error {
	p.used = 0
	c := p.chunk()
	*c = metrics.AppendProtoHeader(*c, f.name, h.Help, h.Type)
	size, header := 0, len(*c)
	for _, b := range f.snapshot() {
		if len(*c) >= chunkBytes {
			size += len(*c)
			c = p.chunk()
		}
		*c = b.appendProto(*c, p.stamp, len(f.name), h.Type)
	}
	size += len(*c)
	if size == header {
		return nil
	}
	p.out = protowire.AppendVarint(p.out, uint64(size))
	for _, c := range p.chunks[:p.used] {
		if len(p.out)+len(c) > 2*chunkBytes {
			if err := p.flush(); err != nil {
				return err
			}
		}
		p.out = append(p.out, c...)
	}
	if len(p.out) >= chunkBytes {
		return p.flush()
	}
	return nil
}

// chunk returns the next free chunk, empty.
func (p *Proto) chunk() *[]byte {
	if p.used == len(p.chunks) {
		p.chunks = append(p.chunks, make([]byte, 0, chunkBytes/8))
	}
	p.used++
	c := &p.chunks[p.used-1]
	*c = (*c)[:0]
	return c
}

func (p *Proto) flush() error {
	_, err := p.w.Write(p.out)
	p.out = p.out[:0]
	return err
}

// Close writes what is left, unless err says that the scrape ended before, and
// returns err or the error of that. The Proto must not be used afterwards.
func (p *Proto) Close(err error) error {
	if err == nil && len(p.out) > 0 {
		err = p.flush()
	}
	p.w = nil
	protos.Put(p)
	return err
}
