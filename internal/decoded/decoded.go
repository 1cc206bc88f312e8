// Package decoded estimates what an encoded message will take in memory, before it
// is decoded. Two bytes of an empty nested message become a hundred: a limit of
// encoded bytes alone bounds nothing.
package decoded

import (
	"fmt"
	"reflect"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Sizes in bytes on a machine of 64 bits.
const (
	pointerBytes = 8
	stringBytes  = 16
	sliceBytes   = 24
	// leastBytes is what the smallest object takes: a text of one byte, or the
	// value of an optional number.
	leastBytes = 16
	// entryBytes of a map are beside its key and value: a slot's part of the
	// table, and of the buckets that are empty.
	entryBytes = 16
	// growth is how much room a slice or a map has that grew by appending: up to
	// twice what is in it.
	growth = 2
)

// Estimator knows one type of messages. It is safe for concurrent use.
type Estimator struct {
	root *message
}

// message is what is known of a type of messages.
type message struct {
	bytes  int // of the struct
	fields map[protowire.Number]*field
}

// field is what is known of one field.
type field struct {
	wire protowire.Type
	// message of a field that has one; nil: it has none.
	message *message
	// bytes that an element takes beside its content.
	bytes int
	// text: the content of an element is kept.
	text bool
	// packed is the size of an encoded element if the field may be packed; -1: a
	// varint, 0: it may not.
	packed int
}

// New returns the Estimator of the type of m, whose nested types must be
// registered, as generated ones are.
func New(m proto.Message) *Estimator {
	known := make(map[protoreflect.FullName]*message)
	return &Estimator{root: newMessage(m.ProtoReflect().Descriptor(), known)}
}

func newMessage(d protoreflect.MessageDescriptor, known map[protoreflect.FullName]*message) *message {
	if m := known[d.FullName()]; m != nil {
		return m
	}
	m := &message{fields: make(map[protowire.Number]*field)}
	known[d.FullName()] = m
	if !d.IsMapEntry() {
		m.bytes = structBytes(d.FullName())
	}
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		m.fields[fd.Number()] = newField(fd, known)
	}
	return m
}

// structBytes returns the size of the generated struct.
func structBytes(name protoreflect.FullName) int {
	t, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		panic(fmt.Sprintf("estimate %s: %v", name, err)) // a type of ours: a test finds it
	}
	return int(reflect.TypeOf(t.Zero().Interface()).Elem().Size())
}

func newField(fd protoreflect.FieldDescriptor, known map[protoreflect.FullName]*message) *field {
	f := &field{wire: wireType(fd.Kind()), text: fd.Kind() == protoreflect.StringKind || fd.Kind() == protoreflect.BytesKind}
	switch {
	case fd.IsMap():
		f.message = newMessage(fd.Message(), known)
		f.bytes = growth * (entryBytes + valueBytes(fd.MapKey().Kind()) + valueBytes(fd.MapValue().Kind()))
	case fd.Message() != nil:
		f.message = newMessage(fd.Message(), known)
		f.bytes = f.message.bytes
		if fd.IsList() {
			f.bytes += growth * pointerBytes
		}
	case fd.IsList():
		f.bytes = growth * valueBytes(fd.Kind())
		f.packed = packedBytes(f.wire)
	case fd.HasPresence() && !f.text:
		f.bytes = leastBytes
	}
	if fd.ContainingOneof() != nil {
		f.bytes += leastBytes + stringBytes // the wrapper of its value
	}
	return f
}

// valueBytes is the size of a value within a struct or a slice.
func valueBytes(k protoreflect.Kind) int {
	switch k {
	case protoreflect.StringKind:
		return stringBytes
	case protoreflect.BytesKind:
		return sliceBytes
	}
	return pointerBytes
}

func wireType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	}
	return protowire.VarintType
}

func packedBytes(t protowire.Type) int {
	switch t {
	case protowire.VarintType:
		return -1
	case protowire.Fixed32Type:
		return 4
	case protowire.Fixed64Type:
		return 8
	}
	return 0
}

// Bytes returns about how many bytes a message takes once it is decoded, rather
// too many than too few. It stops counting beyond limit. An error says that the
// message does not decode.
func (e *Estimator) Bytes(encoded []byte, limit int) (int, error) {
	sum := e.root.bytes
	err := e.root.add(encoded, &sum, limit)
	return sum, err
}

func (m *message) add(b []byte, sum *int, limit int) error {
	for len(b) > 0 && *sum <= limit {
		number, t, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		tag := n
		if n = protowire.ConsumeFieldValue(number, t, b[tag:]); n < 0 {
			return protowire.ParseError(n)
		}
		f, content := m.fields[number], b[tag:tag+n]
		b = b[tag+n:]
		switch {
		case f != nil && t == f.wire:
			*sum += f.bytes
			if t != protowire.BytesType {
				continue
			}
			content, _ = protowire.ConsumeBytes(content)
			if f.text {
				*sum += max(len(content), leastBytes)
				continue
			}
			if err := f.message.add(content, sum, limit); err != nil {
				return err
			}
		case f != nil && t == protowire.BytesType && f.packed != 0:
			content, _ = protowire.ConsumeBytes(content)
			*sum += f.elements(content) * f.bytes
		default: // unknown: it is kept as it is
			*sum += growth * (tag + n)
		}
	}
	return nil
}

// elements returns how many elements a packed field has.
func (f *field) elements(b []byte) int {
	if f.packed > 0 {
		return len(b) / f.packed
	}
	n := 0
	for _, c := range b {
		if c < 0x80 { // the last byte of a varint
			n++
		}
	}
	return n
}
