package wire

import (
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// RelayBatch is a message of a stream that relays for agents. Its requests are read one
// by one. What the agents sent is decoded later, by each agent's own frame. So a batch
// takes no more memory than its bytes.
type RelayBatch struct {
	buffer mem.Buffer
	rest   []byte
}

// RelayedRequest is one request of a batch. It references the batch's bytes.
type RelayedRequest struct {
	Index   uint32
	AgentID []byte // empty: absent
	// Request is the agent's message, if HasRequest.
	Request    []byte
	HasRequest bool
	End        bool
}

// UnmarshalMessage keeps the message until Release.
func (b *RelayBatch) UnmarshalMessage(data mem.BufferSlice) error {
	b.buffer = data.MaterializeToBuffer(mem.DefaultBufferPool())
	b.rest = b.buffer.ReadOnlyData()
	return nil
}

// Release frees the bytes.
func (b *RelayBatch) Release() {
	if b.buffer != nil {
		b.buffer.Free()
	}
	*b = RelayBatch{}
}

// Next reads the next request; false: there is none. The error is the status of a message
// that does not decode.
func (b *RelayBatch) Next() (q RelayedRequest, ok bool, err error) {
	for len(b.rest) > 0 {
		number, t, content, ok := consumeField(&b.rest)
		if !ok {
			return q, false, b.malformed()
		}
		if number != fieldRelayed || t != protowire.BytesType {
			continue // unknown
		}
		if !q.read(content) {
			return q, false, b.malformed()
		}
		return q, true, nil
	}
	return q, false, nil
}

func (b *RelayBatch) malformed() error {
	return grpcserver.Malformed(&agentstatsv1.RelayAgentsRequest{}, b.buffer.ReadOnlyData())
}

// Numbers of the fields of the messages that relay.
const (
	fieldRelayed protowire.Number = 1 // of both RelayAgentsRequest and RelayAgentsResponse

	fieldIndex   protowire.Number = 1
	fieldAgentID protowire.Number = 2
	fieldRequest protowire.Number = 3
	fieldEnd     protowire.Number = 4 // of both
	// Of RelayedResponse.
	fieldResponse protowire.Number = 2
	fieldCredit   protowire.Number = 3
)

// read reads a request as the generated code would. It returns false if the request is
// malformed.
func (q *RelayedRequest) read(b []byte) bool {
	joined := false
	for len(b) > 0 {
		number, t, content, ok := consumeField(&b)
		if !ok {
			return false
		}
		switch {
		case number == fieldIndex && t == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(content)
			q.Index = uint32(v)
		case number == fieldAgentID && t == protowire.BytesType:
			q.AgentID = content
		case number == fieldRequest && t == protowire.BytesType:
			if q.HasRequest { // a message in several fields: they are joined
				if !joined {
					q.Request, joined = slices.Clone(q.Request), true
				}
				content = append(q.Request, content...)
			}
			q.Request, q.HasRequest = content, true
		case number == fieldEnd && t == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(content)
			q.End = protowire.DecodeBool(v)
		}
	}
	return true
}

// consumeField reads a field. The content has no length before it. That of a group
// includes the end tag.
func consumeField(b *[]byte) (protowire.Number, protowire.Type, []byte, bool) {
	number, t, n := protowire.ConsumeTag(*b)
	if n < 0 {
		return 0, 0, nil, false
	}
	rest := (*b)[n:]
	if t == protowire.BytesType {
		content, n := protowire.ConsumeBytes(rest)
		if n < 0 {
			return 0, 0, nil, false
		}
		*b = rest[n:]
		return number, t, content, true
	}
	if n = protowire.ConsumeFieldValue(number, t, rest); n < 0 {
		return 0, 0, nil, false
	}
	*b = rest[n:]
	return number, t, rest[:n], true
}

// RelayedResponse is one response of a message that relays. It cannot encode an end.
type RelayedResponse struct {
	Index, Credit uint32
}

// Append appends it to an encoded message. response is the encoded response to the
// agent; empty: there is none.
func (r RelayedResponse) Append(b, response []byte) []byte {
	var scratch [3 * (1 + 5)]byte // tags, and the longest varints of 32 bits
	head := protowire.AppendVarint(protowire.AppendTag(scratch[:0], fieldIndex, protowire.VarintType), uint64(r.Index))
	if len(response) > 0 {
		head = protowire.AppendVarint(protowire.AppendTag(head, fieldResponse, protowire.BytesType), uint64(len(response)))
	}
	var credit [1 + 5]byte
	tail := credit[:0]
	if r.Credit > 0 {
		tail = protowire.AppendVarint(protowire.AppendTag(tail, fieldCredit, protowire.VarintType), uint64(r.Credit))
	}
	b = protowire.AppendTag(b, fieldRelayed, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(head)+len(response)+len(tail)))
	return append(append(append(b, head...), response...), tail...)
}

// AppendRelayed appends an encoded response to an encoded message.
func AppendRelayed(b, response []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, fieldRelayed, protowire.BytesType), response)
}
