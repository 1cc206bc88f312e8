package grpcserver

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/decoded"
)

// Unmarshaler is a message that reads itself. An error ends its stream as a message
// that does not decode.
type Unmarshaler interface {
	// UnmarshalMessage reads the message. Who keeps the data takes a reference to it.
	UnmarshalMessage(data mem.BufferSlice) error
}

// AgentMessage is a message of an agent's stream. Its handler is given one that is too
// large, too, and charges the agent for it.
type AgentMessage interface {
	Unmarshaler
	// Sender returns the agent, of which one large message is received at a time.
	Sender() agent.ID
	// Refuse is called, in place of UnmarshalMessage, for a message of size bytes that is
	// above the limit. err is the status that says so.
	Refuse(size int, err error)
}

// Marshaler is a message that encodes itself.
type Marshaler interface {
	MarshalMessage() (mem.BufferSlice, error)
}

// codec has messages that can do so read and encode themselves, and does all else as
// usual.
type codec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(Marshaler); ok {
		return m.MarshalMessage()
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(Unmarshaler); ok {
		return m.UnmarshalMessage(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Expansion is how many times its limit of encoded bytes a message may take in
// memory once it is decoded. A label of a few bytes takes eleven times its size. So
// an agent's 1 MiB is never full of plain content, but of what is not plain.
const Expansion = 8

// FitsDecoded returns how many bytes a message will take in memory. The error is
// the status of a message that does not decode, or would take more than Expansion
// times limit. flag sets the limit.
func FitsDecoded(e *decoded.Estimator, m proto.Message, message []byte, limit int, flag string) (int, error) {
	most := Expansion * limit
	n, err := e.Bytes(message, most)
	switch {
	case err != nil:
		return 0, Malformed(m, message)
	case n > most:
		return 0, status.Errorf(codes.ResourceExhausted, "message: want at most %d bytes in memory once decoded (%d times %s), got %d encoded and at least %d decoded: it has too many elements",
			most, Expansion, flag, len(message), n)
	}
	return n, nil
}
