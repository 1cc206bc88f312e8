package grpcserver

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Malformed returns the status that refuses bytes that are no message of m's type: it
// names the type and the first field that is wrong.
func Malformed(m any, encoded []byte) error {
	message, ok := m.(proto.Message)
	if !ok {
		return Invalid("message", "want one that decodes")
	}
	d := message.ProtoReflect().Descriptor()
	path, problem := firstProblem(d, encoded)
	if problem == "" {
		problem = "it does not decode"
	}
	if path == "" {
		return Invalid("message", "want a well-formed %s: %s", d.FullName(), problem)
	}
	return Invalid(path, "want a well-formed %s: %s", d.FullName(), problem)
}

// firstProblem returns where a message does not decode, as a path of fields with
// their numbers, and why; empty: there is nothing wrong.
func firstProblem(d protoreflect.MessageDescriptor, b []byte) (path, problem string) {
	for len(b) > 0 {
		number, t, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", "tag of a field: " + wireProblem(n)
		}
		b = b[n:]
		fd := d.Fields().ByNumber(number)
		name := fmt.Sprintf("field %d", number)
		if fd != nil {
			name = fmt.Sprintf("%s (field %d)", fd.Name(), number)
		}
		if n = protowire.ConsumeFieldValue(number, t, b); n < 0 {
			return name, wireProblem(n)
		}
		value := b[:n]
		b = b[n:]
		if fd == nil || t != protowire.BytesType {
			continue // unknown, or a number
		}
		content, _ := protowire.ConsumeBytes(value)
		inner, problem := "", contentProblem(fd, content)
		if fd.Message() != nil {
			inner, problem = firstProblem(fd.Message(), content)
		}
		if problem != "" {
			return strings.TrimSuffix(name+"."+inner, "."), problem
		}
	}
	return "", ""
}

// contentProblem returns what is wrong with a text, or with packed numbers.
func contentProblem(fd protoreflect.FieldDescriptor, content []byte) string {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if !utf8.Valid(content) {
			return "it is not UTF-8"
		}
	case protoreflect.BytesKind, protoreflect.MessageKind, protoreflect.GroupKind:
	default:
		for fd.IsList() && len(content) > 0 {
			n := protowire.ConsumeFieldValue(fd.Number(), packedType(fd.Kind()), content)
			if n < 0 {
				return wireProblem(n)
			}
			content = content[n:]
		}
	}
	return ""
}

// packedType is the wire type of the elements of a packed field.
func packedType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	}
	return protowire.VarintType
}

// wireProblem is what protowire's result says.
func wireProblem(n int) string {
	err := protowire.ParseError(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "it is cut off"
	}
	// The prefix has a blank of one kind or another, at random.
	return strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), " \u00a0")
}
