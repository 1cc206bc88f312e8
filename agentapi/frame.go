package agentapi

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/decoded"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// frame is one message of an agent's stream. What it has is valid until its
// release. At most one of the fields stats, metadata, request and refused is set.
type frame struct {
	// size of the message, in bytes.
	size int
	// sequence of the request.
	sequence int64
	// stats and metadata are those of a plain request.
	stats    *wireReport
	metadata *metadataDecoder
	entries  []agent.MetadataEntry // of metadata
	// request is any other one.
	request *agentstatsv1.ConnectRequest
	// refused is the status that a message ends the stream with that was too
	// large or did not decode. gRPC would end it with one of its own.
	refused error

	// buffer has the bytes of a plain request; nil: there are none to keep.
	buffer mem.Buffer

	// encodings are those of the samples of the stream's last report. agent is the
	// stream's. Both outlast a release.
	encodings []*agent.SampleEncoding
	agent     agent.ID
}

// The decoders of plain requests are reused, so that an idle stream holds none.
var (
	wireReports      = sync.Pool{New: func() any { return new(wireReport) }}
	metadataDecoders = sync.Pool{New: func() any { return new(metadataDecoder) }}
)

// release lets go of all that the frame has but the encodings and the agent.
func (f *frame) release() {
	if f.stats != nil {
		f.stats.reset()
		wireReports.Put(f.stats)
	}
	if f.metadata != nil {
		f.metadata.release()
		metadataDecoders.Put(f.metadata)
	}
	if f.buffer != nil {
		f.buffer.Free()
	}
	*f = frame{encodings: f.encodings, agent: f.agent}
}

// hasMessage tells whether the request has any of the messages.
func (f *frame) hasMessage() bool {
	return f.stats != nil || f.metadata != nil || f.request.GetMessage() != nil
}

// expansion is how many times its limit of encoded bytes a message may take in
// memory once it is decoded. A label of a few bytes takes eleven times its size, so
// an agent's 1 MiB is never full of what is plain but of what is not.
const expansion = 8

// codec decodes frames and coderd's requests within limits of memory, encodes and counts responses to agents, and does all else as usual.
type codec struct {
	encoding.CodecV2
	limit int // of an agent's message, in bytes
}

// agentRequests estimates what an agent's request takes.
var agentRequests = decoded.New(&agentstatsv1.ConnectRequest{})

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case *ack:
		return v.marshal(), nil
	case *outgoing:
		data, err := c.CodecV2.Marshal(v.message)
		if err != nil {
			return nil, err
		}
		defer data.Free()
		return mem.BufferSlice{newOutBuffer(data.Materialize(), v.box)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if r, bounded := v.(*boundedRequest); bounded {
		buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buffer.Free()
		r.unmarshal(buffer.ReadOnlyData())
		return nil
	}
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	f.size = data.Len()
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	if f.readPlain(buffer.ReadOnlyData()) {
		f.buffer = buffer
		return nil
	}
	defer buffer.Free()
	request := &agentstatsv1.ConnectRequest{}
	if _, err := fitsDecoded(agentRequests, request, buffer.ReadOnlyData(), expansion*c.limit, flagAgentMessageBytes); err != nil {
		f.refused = err
		return nil
	}
	if err := c.CodecV2.Unmarshal(mem.BufferSlice{buffer}, request); err != nil {
		f.refused = malformed(request, buffer.ReadOnlyData())
		return nil
	}
	f.sequence, f.request = request.GetSequence(), request
	return nil
}

// fitsDecoded returns what a message will take in memory, or the status that refuses
// one that does not decode, or would take more than limit bytes.
// The limit is expansion times a flag.
func fitsDecoded(e *decoded.Estimator, m proto.Message, message []byte, limit int, flag string) (int, error) {
	n, err := e.Bytes(message, limit)
	switch {
	case err != nil:
		return 0, malformed(m, message)
	case n > limit:
		return 0, status.Errorf(codes.ResourceExhausted, "message: want at most %d bytes in memory once decoded (%d times %s), got %d encoded and at least %d decoded: it has too many elements",
			limit, expansion, flag, len(message), n)
	}
	return n, nil
}

// The first bytes of the fields of ConnectRequest that are read.
const (
	tagSequence = 1<<3 | byte(protowire.VarintType)
	tagStats    = 3<<3 | byte(protowire.BytesType)
	tagMetadata = 4<<3 | byte(protowire.BytesType)
)

// readPlain reads a request of stats or metadata; false if it is not plain, or
// is another one. Then nothing is kept.
func (f *frame) readPlain(w wire) bool {
	t, ok := w.tag()
	if !ok || t != tagSequence {
		return false
	}
	sequence, ok := w.varint()
	if !ok {
		return false
	}
	t, _ = w.tag()
	message, ok := w.bytes()
	if !ok || len(w) > 0 {
		return false
	}
	switch t {
	case tagStats:
		f.stats, _ = wireReports.Get().(*wireReport)
		ok = f.stats.read(message, f.encodings)
	case tagMetadata:
		f.metadata, _ = metadataDecoders.Get().(*metadataDecoder)
		f.entries, ok = f.metadata.decode(message)
	default:
		return false
	}
	if !ok {
		size := f.size
		f.release()
		f.size = size
		return false
	}
	f.sequence = int64(sequence)
	return true
}
