package coderdapi

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// A registration without any one of its fields is another one, or none: what the
// conversion forgets is neither checked nor stored.
func TestRegistrationForgetsNoField(t *testing.T) {
	now := time.Now()
	whole := new(agentstatsv1.AgentRegistration)
	fillMessage(whole.ProtoReflect())
	whole.TokenSha256 = make([]byte, 32)
	whole.TokenSha256[0] = 1
	want, problem := registrationOf(whole, 256, now)
	require.Nil(t, problem)

	checked := 0
	var check func(name string, get func(root protoreflect.Message) protoreflect.Message)
	check = func(name string, get func(root protoreflect.Message) protoreflect.Message) {
		fields := get(whole.ProtoReflect()).Descriptor().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			if field.Name() == "age" {
				continue // not of the registration: TestAges
			}
			name := name + "." + string(field.Name())
			changed := proto.CloneOf(whole)
			get(changed.ProtoReflect()).Clear(field)
			if got, problem := registrationOf(changed, 256, now); problem == nil {
				require.NotEqual(t, want, got, "the conversion forgets %s", name[1:])
			}
			checked++
			switch {
			case field.Message() == nil || field.Message().FullName().Parent() != whole.ProtoReflect().Descriptor().FullName().Parent():
			case field.IsList():
				check(name, func(root protoreflect.Message) protoreflect.Message {
					return get(root).Mutable(field).List().Get(0).Message()
				})
			default:
				check(name, func(root protoreflect.Message) protoreflect.Message { return get(root).Mutable(field).Message() })
			}
		}
	}
	check("", func(root protoreflect.Message) protoreflect.Message { return root })
	require.Greater(t, checked, 20)
}

// fillMessage gives the fields of m, and of the messages within, values that are valid
// in a registration.
func fillMessage(m protoreflect.Message) {
	if at, ok := m.Interface().(*timestamppb.Timestamp); ok {
		at.Seconds = 1
		return
	}
	value := func(field protoreflect.FieldDescriptor, empty protoreflect.Value) protoreflect.Value {
		switch field.Kind() {
		case protoreflect.MessageKind:
			fillMessage(empty.Message())
			return empty
		case protoreflect.StringKind:
			return protoreflect.ValueOfString("x")
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("sixteen bytes id"))
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(1)
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(1)
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(1)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(1)
		default:
			panic("a field of kind " + field.Kind().String() + ": say how to fill it")
		}
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.IsList() {
			list := m.Mutable(field).List()
			list.Append(value(field, list.NewElement()))
			continue
		}
		m.Set(field, value(field, m.NewField(field)))
	}
}
