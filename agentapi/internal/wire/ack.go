package wire

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/grpcserver"
)

// Ack is a response with nothing but an ack. It is encoded without the generated code,
// as nearly every report causes one.
type Ack struct {
	Received, Durable int64 // sequences
}

// AckMessage is an ack on an agent's own stream.
type AckMessage struct {
	Ack
	Box *grpcserver.Outbox
}

// Numbers of the fields of ConnectResponse and Ack.
const (
	fieldAck      protowire.Number = 2
	fieldReceived protowire.Number = 1
	fieldDurable  protowire.Number = 2
)

// MaxAckBytes is the largest size of an encoded ack.
const MaxAckBytes = 2 + 2*(1+10)

// ackBuffer is an encoded ack in one allocation.
type ackBuffer struct {
	grpcserver.CountedBuffer
	bytes [MaxAckBytes]byte
}

// MarshalMessage encodes the response.
func (a *AckMessage) MarshalMessage() (mem.BufferSlice, error) {
	var buffer ackBuffer
	buffer.Init(a.Append(buffer.bytes[:0]), a.Box)
	return mem.BufferSlice{&buffer}, nil
}

// Append appends the encoded response, of at most MaxAckBytes.
func (a *Ack) Append(b []byte) []byte {
	var scratch [2 * (1 + 10)]byte // tags and the longest varints
	message := scratch[:0]
	for _, f := range [...]struct {
		number protowire.Number
		value  int64
	}{{fieldReceived, a.Received}, {fieldDurable, a.Durable}} {
		if f.value != 0 {
			message = protowire.AppendTag(message, f.number, protowire.VarintType)
			message = protowire.AppendVarint(message, uint64(f.value))
		}
	}
	b = protowire.AppendTag(b, fieldAck, protowire.BytesType)
	return protowire.AppendBytes(b, message) // its length is below 128, which takes one byte
}
