package coderdapi

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/decoded"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Kinds of coderd's calls that share a budget of bytes, as the metrics label them.
const (
	bytesRegistrations = "registrations"
	bytesPushes        = "pushes"
	bytesWatches       = "watches"        // what is kept of them
	bytesReads         = "metadata_reads" // by them, too
	bytesBatches       = "report_batches" // for watches of stats
)

// byteBudget is what the calls of one kind that are under way may have in memory
// together.
type byteBudget struct {
	kind    string // for people
	flag    string // that sets it
	limit   int
	refused prometheus.Counter

	mu sync.Mutex
	// Guarded by mu.
	used int
}

func newByteBudget(kind, flag string, limit int, m *metrics) *byteBudget {
	return &byteBudget{kind: kind, flag: flag, limit: limit, refused: m.bytesRefused.WithLabelValues(kind)}
}

// acquire returns the status that refuses n bytes; nil: they are the caller's.
func (b *byteBudget) acquire(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > b.limit {
		b.refused.Inc()
		return grpcserver.Exhausted(time.Second, fmt.Sprintf("message: want at most %d bytes in memory of all %s under way (%s), got %d more than the %d that there are; try again later, or with less at once",
			b.limit, b.kind, b.flag, n, b.used))
	}
	b.used += n
	return nil
}

// release gives n bytes back, or takes them for what exists already if it is
// negative.
func (b *byteBudget) release(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}

// inUse returns how many bytes are acquired.
func (b *byteBudget) inUse() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// shareBytes makes the budgets of the methods that have one.
func (s *Service) shareBytes() {
	registrations := newByteBudget(bytesRegistrations, flagSyncBytes, s.opts.MaxSyncBytes, s.metrics)
	pushes := newByteBudget(bytesPushes, flagPushesBytes, s.opts.MaxPushesBytes, s.metrics)
	s.byteBudgets = map[string]*byteBudget{
		agentstatsv1.CoderdService_RegisterAgents_FullMethodName: registrations,
		agentstatsv1.CoderdService_SyncAgents_FullMethodName:     registrations,
		agentstatsv1.CoderdService_PushMetrics_FullMethodName:    pushes,
	}
}

// byteHold is what one call has of a budget: for each message that was received
// and not looked at yet what it was estimated at, and what is kept of the others.
type byteHold struct {
	budget *byteBudget // nil: the call has none

	mu sync.Mutex
	// Guarded by mu.
	waiting []int
	kept    int
	closed  bool
	sent    int // bytes on the wire, that nothing has come of yet
}

type byteHoldKey struct{}

// holdFrom returns that of a call of coderd.
func holdFrom(ctx context.Context) *byteHold {
	h, _ := ctx.Value(byteHoldKey{}).(*byteHold)
	if h == nil {
		return &byteHold{}
	}
	return h
}

// addSent counts bytes of messages; answered says that something came of them.
func (h *byteHold) addSent(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent += n
}

func (h *byteHold) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent = 0
}

// add takes n bytes for a message that is about to be decoded; an error refuses it.
func (h *byteHold) add(n int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.budget == nil {
		return nil
	}
	if h.closed { // whoever reads for the handler is a little late
		return grpcserver.ErrDraining
	}
	if err := h.budget.acquire(n); err != nil {
		return err
	}
	h.waiting = append(h.waiting, n)
	return nil
}

// keep says that of the oldest message that waits so many bytes are kept.
func (h *byteHold) keep(kept int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.waiting) == 0 {
		return
	}
	h.budget.release(h.waiting[0] - kept)
	h.waiting = h.waiting[1:]
	h.kept += kept
}

// drop says that nothing is kept any more.
func (h *byteHold) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked()
}

func (h *byteHold) dropLocked() {
	if h.budget != nil {
		h.budget.release(h.kept)
		h.kept = 0
	}
}

// close gives everything back. It returns how many bytes were sent for nothing, if
// nothing comes of them any more.
func (h *byteHold) close() (sent int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked()
	for _, n := range h.waiting {
		h.budget.release(n)
	}
	h.waiting, h.closed = nil, true
	return h.sent
}

// boundStream bounds what coderd's messages take in memory: each, and of calls that
// share a budget all together, how often they may come to nothing.
func (s *Service) boundStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	hold := &byteHold{budget: s.byteBudgets[info.FullMethod]}
	defer hold.close()
	ctx, cancel := context.WithCancel(context.WithValue(stream.Context(), byteHoldKey{}, hold))
	defer cancel()
	err := handler(srv, &boundedStream{ServerStream: stream, ctx: ctx, hold: hold, decoders: s.decoders, limit: s.server.Options().MaxMessageBytes})
	cancel() // no message is kept for the handler any more
	if sent := hold.close(); hold.budget != nil && isFutile(err) {
		s.futile.await(sent, s.server.Draining())
	}
	return err
}

// boundedStream is a stream of coderd's.
type boundedStream struct {
	grpc.ServerStream
	ctx      context.Context
	hold     *byteHold
	decoders chan struct{}
	limit    int
}

// Context implements grpc.ServerStream.
func (b *boundedStream) Context() context.Context { return b.ctx }

// RecvMsg implements grpc.ServerStream.
func (b *boundedStream) RecvMsg(m any) error {
	message, ok := m.(proto.Message)
	if !ok {
		return b.ServerStream.RecvMsg(m)
	}
	r := boundedRequest{message: message, hold: b.hold, decoders: b.decoders, limit: b.limit}
	if err := b.ServerStream.RecvMsg(&r); err != nil {
		return err
	}
	return r.refused
}

// boundedRequest has the codec decode a message within a limit of memory.
type boundedRequest struct {
	message  proto.Message
	hold     *byteHold
	decoders chan struct{} // holds one element for each large message that is being decoded
	limit    int
	refused  error // the status that refuses the message
}

// largeMessage is how large a message is that stands in line to be decoded: as many
// are at once as half of the processors, so that agents do not wait for them all.
const largeMessage = 64 << 10

// UnmarshalMessage implements Unmarshaler. The error is nil: the status of a message that
// is refused is in r.
func (r *boundedRequest) UnmarshalMessage(data mem.BufferSlice) error {
	if data.Len() > largeMessage {
		r.decoders <- struct{}{}
		defer func() { <-r.decoders }()
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	encoded := buffer.ReadOnlyData()
	r.hold.addSent(len(encoded))
	estimator := coderdRequests[r.message.ProtoReflect().Descriptor().FullName()]
	n, err := grpcserver.FitsDecoded(estimator, r.message, encoded, r.limit, grpcserver.FlagMessageBytes)
	if err == nil {
		err = r.hold.add(n)
	}
	if err == nil && proto.Unmarshal(encoded, r.message) != nil {
		err = grpcserver.Malformed(r.message, encoded)
	}
	r.refused = err
	return nil
}

// coderdRequests estimates what coderd's requests take, by the name of their type.
var coderdRequests = func() map[protoreflect.FullName]*decoded.Estimator {
	all := make(map[protoreflect.FullName]*decoded.Estimator)
	methods := agentstatsv1.File_agentstats_v1_coderd_proto.Services().ByName("CoderdService").Methods()
	for i := range methods.Len() {
		name := methods.Get(i).Input().FullName()
		t, err := protoregistry.GlobalTypes.FindMessageByName(name)
		if err != nil {
			panic(err) // a type of ours
		}
		all[name] = decoded.New(t.Zero().Interface())
	}
	return all
}()
