package coderdapi

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Fields of RegisterAgentsRequest and of SyncAgentsRequest with registrations, and those
// with ids in AgentRegistration and in Workspace.
const (
	fieldAgents, fieldWorkspaces protowire.Number = 1, 2
	fieldID, fieldWorkspace      protowire.Number = 1, 6
)

// decodeApart decodes a message of registrations that does not decode, without those that
// have a text that is not UTF-8. These are refused alone. It returns false if the message
// is none of registrations, or does not decode without them either.
func decodeApart(m proto.Message, encoded []byte) (refused []agent.RegistrationRefusal, ok bool) {
	switch m.(type) {
	case *agentstatsv1.RegisterAgentsRequest, *agentstatsv1.SyncAgentsRequest:
	default:
		return nil, false
	}
	var kept []byte
	for len(encoded) > 0 {
		number, _, tag := protowire.ConsumeTag(encoded)
		_, _, n := protowire.ConsumeField(encoded)
		if n < 0 {
			return nil, false
		}
		element := encoded[:n]
		content, isBytes := protowire.ConsumeBytes(element[tag:])
		encoded = encoded[n:]
		refusal := agent.RegistrationRefusal{Problem: "want UTF-8"}
		switch {
		case isBytes < 0:
		case number == fieldAgents:
			refusal.Field = notUTF8((*agentstatsv1.AgentRegistration)(nil).ProtoReflect().Descriptor(), content)
			refusal.Agent, _ = optionalID("", bytesOf(content, fieldID))
			refusal.Workspace, _ = optionalID("", bytesOf(bytesOf(content, fieldWorkspace), fieldID))
		case number == fieldWorkspaces:
			refusal.Field = notUTF8((*agentstatsv1.Workspace)(nil).ProtoReflect().Descriptor(), content)
			refusal.Workspace, _ = optionalID("", bytesOf(content, fieldID))
		}
		if refusal.Field != "" {
			refused = append(refused, refusal)
			continue
		}
		kept = append(kept, element...)
	}
	return refused, len(refused) > 0 && proto.Unmarshal(kept, m) == nil
}

// bytesOf returns the last value of a field of bytes; nil: there is none.
func bytesOf(message []byte, field protowire.Number) (value []byte) {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		_, _, n := protowire.ConsumeField(message)
		if n < 0 {
			return value
		}
		if number == field && kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(message[tag:n])
		}
		message = message[n:]
	}
	return value
}

// notUTF8 returns the path of the first text that is not UTF-8; empty: there is none.
func notUTF8(d protoreflect.MessageDescriptor, message []byte) string {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		_, _, n := protowire.ConsumeField(message)
		if n < 0 {
			return ""
		}
		field := d.Fields().ByNumber(number)
		if field != nil && kind == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(message[tag:n])
			if field.Kind() == protoreflect.StringKind && !utf8.Valid(content) {
				return string(field.Name())
			}
			if field.Message() != nil {
				if inner := notUTF8(field.Message(), content); inner != "" {
					return string(field.Name()) + "." + inner
				}
			}
		}
		message = message[n:]
	}
	return ""
}
