package parts

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// spoil returns copies of the message, in each of which another text is not UTF-8.
func spoil(root proto.Message) (spoiled []proto.Message) {
	var walk func(get func(protoreflect.Message) protoreflect.Message)
	walk = func(get func(protoreflect.Message) protoreflect.Message) {
		fields := get(root.ProtoReflect()).Descriptor().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			c := proto.Clone(root)
			switch m := get(c.ProtoReflect()); {
			case field.Kind() == protoreflect.StringKind && field.IsList():
				m.Mutable(field).List().Append(protoreflect.ValueOfString("\xff"))
				spoiled = append(spoiled, c)
			case field.Kind() == protoreflect.StringKind:
				m.Set(field, protoreflect.ValueOfString("\xff"))
				spoiled = append(spoiled, c)
			case field.Message() == nil:
			case field.IsList():
				walk(func(r protoreflect.Message) protoreflect.Message {
					list := get(r).Mutable(field).List()
					if list.Len() == 0 {
						list.Append(list.NewElement())
					}
					return list.Get(0).Message()
				})
			default:
				walk(func(r protoreflect.Message) protoreflect.Message { return get(r).Mutable(field).Message() })
			}
		}
	}
	walk(func(r protoreflect.Message) protoreflect.Message { return r })
	return spoiled
}

// What cannot be encoded is replaced, whichever text it is of, and is not changed.
func TestSetCanBeEncoded(t *testing.T) {
	good := &agentstatsv1.AgentRegistration{Id: []byte("an agent"), Name: "main", Workspace: &agentstatsv1.Workspace{Id: []byte("a workspace")}}
	spoiled := spoil(good)
	require.Len(t, spoiled, 10)
	for _, m := range spoiled {
		bad := m.(*agentstatsv1.AgentRegistration)
		bad.Id = []byte("another agent")
		before := proto.CloneOf(bad)
		agents := []*agentstatsv1.AgentRegistration{good, bad}
		set := SetOf(agents, nil)
		for agents := range set.Parts() {
			require.Len(t, agents, 2)
			require.Same(t, good, agents[0])
			_, err := proto.Marshal(agents[1])
			require.NoError(t, err, "%v", bad)
			require.Equal(t, bad.GetId(), agents[1].GetId())
			require.Equal(t, bad.GetWorkspace().GetId(), agents[1].GetWorkspace().GetId())
		}
		require.Same(t, bad, agents[1])
		require.True(t, proto.Equal(before, bad))
		refused := set.Explain([]*agentstatsv1.RegistrationRefusal{{AgentId: good.GetId(), Field: "x"}, {AgentId: bad.GetId(), Field: "name"}})
		require.Equal(t, "x", refused[0].GetField())
		require.Equal(t, "want UTF-8", refused[1].GetMessage())
	}
	workspaces := spoil(good.GetWorkspace())
	require.Len(t, workspaces, 5)
	for _, m := range workspaces {
		set := SetOf(nil, []*agentstatsv1.Workspace{m.(*agentstatsv1.Workspace)})
		for _, workspaces := range set.Parts() {
			_, err := proto.Marshal(workspaces[0])
			require.NoError(t, err)
		}
		require.Equal(t, "want UTF-8", set.Explain([]*agentstatsv1.RegistrationRefusal{{WorkspaceId: good.GetWorkspace().GetId()}})[0].GetMessage())
	}
}
