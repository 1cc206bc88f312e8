// Package stream compares the reception of reports over gRPC: by the service, by the
// service with generated decoding, and by a server that discards them. Streams that say
// nothing, and acks under load, are looked at too.
package stream

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// connectMethod is the full name of the agents' stream.
const connectMethod = "/agentstats.v1.AgentService/Connect"

// codec passes bytes through, so that neither the senders nor the limit pay for
// messages.
type codec struct{}

// Name implements encoding.CodecV2: on the wire it is protobuf.
func (codec) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(mem.BufferSlice)
	if !ok {
		return nil, fmt.Errorf("want encoded bytes, got %T", v)
	}
	return m, nil
}

// receiver is what messages are received into.
type receiver interface {
	receive(data mem.BufferSlice) error
}

// Unmarshal implements encoding.CodecV2. gRPC frees the buffers after it.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(receiver)
	if !ok {
		return fmt.Errorf("want a receiver, got %T", v)
	}
	return r.receive(data)
}

// Numbers of fields of the responses to an agent.
const (
	responseSettings  = 1
	responseAck       = 2
	responseReconnect = 4
	ackReceived       = 1
)

// askForAck is the encoded field ack_now of a request.
var askForAck = []byte{10 << 3, 1}

// encodeSequence encodes a request with nothing but its sequence.
func encodeSequence(sequence int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(sequence))
}

// response is what an agent receives.
type response struct {
	settings bool
	ack      int64 // 0: none
}

func (r *response) receive(data mem.BufferSlice) error {
	*r = response{}
	text := data.Materialize() // a few bytes
	number, kind, n := protowire.ConsumeTag(text)
	if n < 0 || kind != protowire.BytesType {
		return errors.New("a response of an unknown kind")
	}
	body, m := protowire.ConsumeBytes(text[n:])
	if m < 0 {
		return fmt.Errorf("read a response: %w", protowire.ParseError(m))
	}
	switch number {
	case responseSettings:
		r.settings = true
	case responseAck:
		r.ack = varint(body, ackReceived)
	case responseReconnect:
	default:
		return fmt.Errorf("refused: %q", body)
	}
	return nil
}

// varint returns the value of a field, if that stands first; else 0.
func varint(text []byte, field protowire.Number) int64 {
	number, kind, n := protowire.ConsumeTag(text)
	if n < 0 || number != field || kind != protowire.VarintType {
		return 0
	}
	v, m := protowire.ConsumeVarint(text[n:])
	if m < 0 {
		return 0
	}
	return int64(v)
}

// encodeAck encodes a response that acks up to a sequence.
func encodeAck(sequence int64) []byte {
	ack := protowire.AppendVarint(protowire.AppendTag(nil, ackReceived, protowire.VarintType), uint64(sequence))
	return protowire.AppendBytes(protowire.AppendTag(nil, responseAck, protowire.BytesType), ack)
}

// emptySettings is the answer to a hello of a server that has nothing to say.
var emptySettings = protowire.AppendBytes(protowire.AppendTag(nil, responseSettings, protowire.BytesType), nil)
