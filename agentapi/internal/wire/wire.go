// Package wire reads agents' requests from the wire and encodes acks, without the
// generated code where they are plain.
package wire

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
)

// Agents' requests are read from the wire without decoding them into messages, if they
// are plain. A plain request has known fields with their wire types, tags of one byte,
// and messages that are not split over several fields. It is read as the generated code
// would decode it. The generated code decodes what is not plain: that is rare, so it
// need not be fast.

// reader is the unread rest of an encoded message. A read that fails returns false and
// leaves it undefined.
type reader []byte

// tag reads the tag of the next field; false at the end, or if it has more than
// one byte.
func (w *reader) tag() (byte, bool) {
	b := *w
	if len(b) == 0 || b[0] >= 0x80 {
		return 0, false
	}
	*w = b[1:]
	return b[0], true
}

// nextIs reads the tag of the next field if it is tag.
func (w *reader) nextIs(tag byte) bool {
	b := *w
	if len(b) == 0 || b[0] != tag {
		return false
	}
	*w = b[1:]
	return true
}

func (w *reader) varint() (uint64, bool) {
	b := *w
	if len(b) > 0 && b[0] < 0x80 {
		*w = b[1:]
		return uint64(b[0]), true
	}
	v, n := protowire.ConsumeVarint(b)
	if n < 0 {
		return 0, false
	}
	*w = b[n:]
	return v, true
}

func (w *reader) double() (float64, bool) {
	b := *w
	if len(b) < 8 {
		return 0, false
	}
	*w = b[8:]
	return math.Float64frombits(binary.LittleEndian.Uint64(b)), true
}

// bytes reads a field that is prefixed with its length. The result references w.
func (w *reader) bytes() (reader, bool) {
	n, ok := w.varint()
	b := *w
	if !ok || n > uint64(len(b)) {
		return nil, false
	}
	*w = b[n:]
	return b[:n:n], true
}

// text reads a string, which must be UTF-8. The result references w, and changes with
// it.
func (w *reader) text() (string, bool) {
	b, ok := w.bytes()
	if !ok || !utf8.Valid(b) {
		return "", false
	}
	return b.string(), true
}

// string returns the bytes as a string, without a copy.
func (w reader) string() string { return unsafe.String(unsafe.SliceData(w), len(w)) }
