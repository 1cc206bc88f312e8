package wire

import (
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/decoded"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Frame is one message of an agent's stream. Its contents are valid until Release. A
// plain request has stats, metadata or both, and maybe ack_now and an age. Of any other
// message Request or Refused is set.
type Frame struct {
	// Size of the message, in bytes.
	Size int
	// Sequence of the request.
	Sequence int64
	// AckNow is true if the client waits for the ack.
	AckNow   bool
	StatsAge uint64 // in microseconds
	// Stats and metadata are those of a plain request.
	Stats    *Report
	metadata *metadataDecoder
	entries  []agent.MetadataEntry // of metadata
	// Request is any other one.
	Request *agentstatsv1.ConnectRequest
	// Refused is the status that ends the stream, if the message was too large or did
	// not decode. gRPC would end it with one of its own.
	Refused error

	// buffer has the bytes of a plain request; nil: nothing references it.
	buffer mem.Buffer

	// encodings are those of the samples of the stream's last report. agent is the
	// stream's, limit that of its messages, in bytes. They outlast a release.
	encodings []*agent.SampleEncoding
	agent     agent.ID
	limit     int
}

// The decoders of plain requests are reused, so that an idle stream has none.
var (
	wireReports      = sync.Pool{New: func() any { return new(Report) }}
	metadataDecoders = sync.Pool{New: func() any { return new(metadataDecoder) }}
)

// NewFrame returns a frame of an agent's stream, whose messages have at most limit bytes.
func NewFrame(id agent.ID, limit int) Frame { return Frame{agent: id, limit: limit} }

// Release releases all but what the stream keeps over its messages.
func (f *Frame) Release() {
	if f.Stats != nil {
		f.Stats.reset()
		wireReports.Put(f.Stats)
	}
	if f.metadata != nil {
		f.metadata.release()
		metadataDecoders.Put(f.metadata)
	}
	if f.buffer != nil {
		f.buffer.Free()
	}
	*f = Frame{encodings: f.encodings, agent: f.agent, limit: f.limit}
}

// MetadataEntries returns the entries of a plain request of metadata; false: it is none.
// The caller may change them.
func (f *Frame) MetadataEntries() ([]agent.MetadataEntry, bool) { return f.entries, f.metadata != nil }

// KeepEncodings keeps the encodings of a plain report's samples for the stream's next
// report.
func (f *Frame) KeepEncodings() { f.encodings = f.Stats.encodings(f.encodings) }

// IsEmpty reports whether the request has nothing beside its sequence.
func (f *Frame) IsEmpty() bool {
	r := f.Request
	return f.Stats == nil && f.metadata == nil && !f.AckNow && r.GetHello() == nil && r.GetStats() == nil &&
		r.GetMetadata() == nil && r.GetLifecycle() == nil && r.GetAppHealth() == nil && r.GetNetwork() == nil &&
		r.GetGoodbye() == nil
}

// ForStore reports whether a part of the request is to be stored.
func (f *Frame) ForStore() bool {
	r := f.Request
	return f.metadata != nil || r.GetMetadata() != nil || r.GetLifecycle() != nil || r.GetAppHealth() != nil || r.GetNetwork() != nil
}

// agentRequests estimates what an agent's request takes in memory when it is decoded.
var agentRequests = decoded.New(&agentstatsv1.ConnectRequest{})

// Sender returns the agent whose stream it is.
func (f *Frame) Sender() agent.ID { return f.agent }

// Refuse sets the status of a message of size bytes that is not read.
func (f *Frame) Refuse(size int, err error) { f.Size, f.Refused = size, err }

// UnmarshalMessage reads a message. The error is always nil. If the message does not
// decode, Refused is set.
func (f *Frame) UnmarshalMessage(data mem.BufferSlice) error {
	f.ReadBuffer(data.MaterializeToBuffer(mem.DefaultBufferPool()))
	return nil
}

// ReadBuffer reads a message, as UnmarshalMessage does. The frame owns the buffer from
// then on.
func (f *Frame) ReadBuffer(buffer mem.Buffer) {
	f.Size = buffer.Len()
	if f.readPlain(buffer.ReadOnlyData()) {
		f.buffer = buffer
		return
	}
	defer buffer.Free()
	request := &agentstatsv1.ConnectRequest{}
	if _, err := grpcserver.FitsDecoded(agentRequests, request, buffer.ReadOnlyData(), f.limit, grpcserver.FlagAgentMessageBytes); err != nil {
		f.Refused = err
		return
	}
	if err := proto.Unmarshal(buffer.ReadOnlyData(), request); err != nil {
		f.Refused = grpcserver.Malformed(request, buffer.ReadOnlyData())
		return
	}
	f.Sequence, f.AckNow, f.Request = request.GetSequence(), request.GetAckNow(), request
	f.StatsAge = uint64(request.GetStatsAge())
}

// The first bytes of the fields of ConnectRequest that are read.
const (
	tagSequence = 1<<3 | byte(protowire.VarintType)
	tagStats    = 3<<3 | byte(protowire.BytesType)
	tagMetadata = 4<<3 | byte(protowire.BytesType)
	tagAckNow   = 10<<3 | byte(protowire.VarintType)
	tagStatsAge = 11<<3 | byte(protowire.VarintType)
)

// readPlain reads a plain request: a sequence, stats, metadata, ack_now and age, each at
// most once, in the order of their numbers. It returns false, and keeps nothing, if the
// request is not plain.
func (f *Frame) readPlain(w reader) bool {
	if f.readFields(&w) && len(w) == 0 && (f.Stats != nil || f.metadata != nil) {
		return true
	}
	size := f.Size
	f.Release()
	f.Size = size
	return false
}

// readFields reads the fields of a plain request, and stops before any other field. It
// returns false if a field is malformed, or the sequence is not the first one.
func (f *Frame) readFields(w *reader) bool {
	t, ok := w.tag()
	if !ok || t != tagSequence {
		return false
	}
	sequence, ok := w.varint()
	if !ok {
		return false
	}
	f.Sequence = int64(sequence)
	if w.nextIs(tagStats) {
		message, ok := w.bytes()
		if !ok {
			return false
		}
		f.Stats, _ = wireReports.Get().(*Report)
		if !f.Stats.read(message, f.encodings) {
			return false
		}
	}
	if w.nextIs(tagMetadata) {
		message, ok := w.bytes()
		if !ok {
			return false
		}
		f.metadata, _ = metadataDecoders.Get().(*metadataDecoder)
		if f.entries, ok = f.metadata.decode(message); !ok {
			return false
		}
	}
	if w.nextIs(tagAckNow) {
		now, ok := w.varint()
		if f.AckNow = now != 0; !ok {
			return false
		}
	}
	if w.nextIs(tagStatsAge) {
		f.StatsAge, ok = w.varint()
	}
	return ok
}
