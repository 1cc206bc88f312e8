package wire

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/grpcserver"
)

// Ack is a response with an acknowledgement. It is encoded without a message, as
// there is one for nearly every report.
type Ack struct {
	Received, Durable int64 // sequences
	Box               *grpcserver.Outbox
}

// Numbers of the fields of ConnectResponse and Ack.
const (
	fieldAck      protowire.Number = 2
	fieldReceived protowire.Number = 1
	fieldDurable  protowire.Number = 2
)

// ackBuffer is an encoded ack in one allocation.
type ackBuffer struct {
	grpcserver.CountedBuffer
	bytes [2 + 2*(1+10)]byte
}

// MarshalMessage encodes the response.
func (a *Ack) MarshalMessage() (mem.BufferSlice, error) {
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
	var buffer ackBuffer
	response := buffer.bytes[:0] // its length is below 128, which takes one byte
	response = protowire.AppendTag(response, fieldAck, protowire.BytesType)
	response = protowire.AppendBytes(response, message)
	buffer.Init(response, a.Box)
	return mem.BufferSlice{&buffer}, nil
}
