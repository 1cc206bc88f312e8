// Package parts splits what is registered into parts that fit into requests.
package parts

import (
	"iter"

	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// MaxMessages bounds the agents or workspaces in one request; the service allows
	// 10000.
	MaxMessages = 1000
	// MaxBytes bounds the encoded size of one request, below the message limit of any
	// service: a thousand plain registrations have about 250 KB.
	MaxBytes = 256 << 10
)

// Of yields agents, then workspaces, in parts that fit into a request.
func Of(agents []*agentstatsv1.AgentRegistration, workspaces []*agentstatsv1.Workspace) iter.Seq2[[]*agentstatsv1.AgentRegistration, []*agentstatsv1.Workspace] {
	return func(yield func([]*agentstatsv1.AgentRegistration, []*agentstatsv1.Workspace) bool) {
		for part := range sized(agents) {
			if !yield(part, nil) {
				return
			}
		}
		for part := range sized(workspaces) {
			if !yield(nil, part) {
				return
			}
		}
	}
}

// sized yields parts of messages that fit into a request; a message that does
// not fit comes alone.
func sized[M proto.Message](messages []M) iter.Seq[[]M] {
	return func(yield func([]M) bool) {
		start, bytes := 0, 0
		for i, m := range messages {
			// 8 bytes are more than the tag and length of an element.
			size := proto.Size(m) + 8
			if i > start && (i-start == MaxMessages || bytes+size > MaxBytes) {
				if !yield(messages[start:i]) {
					return
				}
				start, bytes = i, 0
			}
			bytes += size
		}
		if start < len(messages) {
			yield(messages[start:])
		}
	}
}
