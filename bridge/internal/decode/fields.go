package decode

import (
	"math"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// message has the fields of a message that are kept, by their numbers.
type message map[protowire.Number]field

// field is one that is kept: either the fields of the message in it, or its value.
type field struct {
	message *message
	// begin is called before a nested message, and end after it.
	begin, end func(*collected)
	// number is called with a varint, bytes with a text.
	number func(*collected, uint64)
	bytes  func(*collected, []byte)
	wire   protowire.Type
}

const (
	// maxValue bounds a text that is kept: names have at most 256 bytes.
	maxValue = 1 << 10
	// maxDepth is that of the DERP map's regions in the manifest.
	maxDepth = 5
	// maxKey bounds the encoding of a tag, or a varint.
	maxKey = 10
)

var errMessage = NewError(ReasonMessage, "a message is no protobuf, or a field of it is too large")

// walker reads a message in parts, and keeps nothing of it but some fields.
type walker struct {
	collected collected

	offset uint64 // of the next byte in the message
	depth  int
	nested [maxDepth]nested // the first is the message itself

	state state
	field field
	known bool   // field is one that is kept
	left  uint64 // of the value that is skipped or kept
	value []byte // what of a value, or of a key, has come
}

// nested is a message whose fields are read.
type nested struct {
	fields *message
	end    uint64 // the offset of its end
	field  field  // in which it is
}

// state is what the next byte of a message belongs to.
type state uint8

const (
	inTag state = iota
	inVarint
	inLength
	inValue
)

var walkers = sync.Pool{New: func() any { return new(walker) }}

// newWalker returns a walker of a message, whose memory is taken of the budget; nil: that is
// used up.
func newWalker(budget *share, fields *message) *walker {
	if !budget.reserve(walkerBytes) {
		return nil
	}
	w, _ := walkers.Get().(*walker)
	w.nested[0] = nested{fields: fields, end: math.MaxUint64}
	return w
}

// free gives the memory back. The walker is not to be used any more, and nothing of the
// message stays in it.
func (w *walker) free(budget *share) {
	if w == nil {
		return
	}
	budget.release(walkerBytes)
	clear(w.value[:cap(w.value)])
	*w = walker{value: w.value[:0]}
	walkers.Put(w)
}

// end ends a message, and returns what was kept of it. The caller owns that.
func (w *walker) end() (*collected, error) {
	if w.state != inTag || len(w.value) > 0 || w.depth > 0 {
		return nil, errMessage
	}
	kept := w.collected
	return &kept, nil
}

// read reads what follows of the message.
func (w *walker) read(b []byte) error {
	for len(b) > 0 {
		n, err := w.step(b)
		if err != nil {
			return err
		}
		b = b[n:]
		w.offset += uint64(n)
		if err := w.leave(); err != nil {
			return err
		}
	}
	return nil
}

// leave leaves the nested messages that end here.
func (w *walker) leave() error {
	for w.depth > 0 && w.offset >= w.nested[w.depth].end {
		in := w.nested[w.depth]
		if w.offset > in.end || w.state != inTag || len(w.value) > 0 {
			return errMessage
		}
		if in.field.end != nil {
			in.field.end(&w.collected)
		}
		w.depth--
	}
	return nil
}

// step reads a part of one thing. It returns of how many bytes, at least one.
func (w *walker) step(b []byte) (int, error) {
	if w.state == inValue {
		part := b[:min(uint64(len(b)), w.left)]
		w.left -= uint64(len(part))
		if w.known {
			w.value = append(w.value, part...)
		}
		if w.left == 0 {
			w.keep()
		}
		return len(part), nil
	}
	if len(w.value) == 0 && b[0] < 0x80 { // mostly it is one byte
		return 1, w.number(uint64(b[0]))
	}
	w.value = append(w.value, b[0])
	switch {
	case len(w.value) > maxKey:
		return 0, errMessage
	case b[0] >= 0x80:
		return 1, nil
	}
	number, n := protowire.ConsumeVarint(w.value)
	w.value = w.value[:0]
	if n < 0 {
		return 0, errMessage
	}
	return 1, w.number(number)
}

// number handles a varint that is whole: a tag, a length or a value.
func (w *walker) number(v uint64) error {
	switch w.state {
	case inTag:
		return w.tag(v)
	case inVarint:
		if w.known {
			w.field.number(&w.collected, v)
		}
		w.state = inTag
		return nil
	}
	w.left = v
	w.state = inValue
	end := w.offset + 1 + v // the byte of the length that is read is the last
	switch {
	case v > maxMessage || end > w.nested[w.depth].end:
		return errMessage
	case w.known && w.field.message != nil:
		return w.enter(end)
	case w.known && v > maxValue:
		return errMessage
	case v == 0:
		w.keep()
	}
	return nil
}

// enter enters a nested message.
func (w *walker) enter(end uint64) error {
	if w.depth++; w.depth == maxDepth {
		return errMessage
	}
	w.nested[w.depth] = nested{fields: w.field.message, end: end, field: w.field}
	w.state = inTag
	if w.field.begin != nil {
		w.field.begin(&w.collected)
	}
	return nil
}

// tag handles a tag.
func (w *walker) tag(v uint64) error {
	number, wire := protowire.DecodeTag(v)
	if number < protowire.MinValidNumber {
		return errMessage
	}
	w.field, w.known = (*w.nested[w.depth].fields)[number]
	w.known = w.known && w.field.wire == wire
	switch wire {
	case protowire.VarintType:
		w.state = inVarint
	case protowire.BytesType:
		w.state = inLength
	case protowire.Fixed32Type:
		w.state, w.left = inValue, 4
	case protowire.Fixed64Type:
		w.state, w.left = inValue, 8
	default: // groups, which none of these messages has
		return errMessage
	}
	return nil
}

// keep hands over a value that is whole.
func (w *walker) keep() {
	w.state = inTag
	if w.known {
		w.field.bytes(&w.collected, w.value)
	}
	w.value = w.value[:0]
}
