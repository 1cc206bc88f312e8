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

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/decoded"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Kinds of coderd's calls that share a budget of bytes, as the metrics label them.
const (
	bytesRegistrations = "registrations"
	bytesPushes        = "pushes"
	bytesWatches       = "watches"        // what they keep in memory
	bytesReads         = "metadata_reads" // also those of watches
	bytesBatches       = "report_batches" // for watches of stats
)

// byteBudget bounds the memory of all calls of one kind that are under way together.
type byteBudget struct {
	kind    string // for people
	flag    string // that sets it
	refused prometheus.Counter

	mu sync.Mutex
	// Guarded by mu.
	limit, used int
}

func newByteBudget(kind, flag string, limit int, m *metrics) *byteBudget {
	return &byteBudget{kind: kind, flag: flag, limit: limit, refused: m.bytesRefused.WithLabelValues(kind)}
}

// setLimit changes the limit. What is reserved stays.
func (b *byteBudget) setLimit(limit int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = limit
}

// acquire reserves n bytes. The error is the status of a message for which there is
// no room.
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

// release gives n bytes back. A negative n reserves them without a limit, for what
// exists already.
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

// shareBytes makes the budgets that methods share.
func (s *Service) shareBytes() {
	registrations := newByteBudget(bytesRegistrations, flagSyncBytes, s.opts.Load().MaxSyncBytes, s.metrics)
	pushes := newByteBudget(bytesPushes, flagPushesBytes, s.opts.Load().MaxPushesBytes, s.metrics)
	s.byteBudgets = map[string]*byteBudget{
		agentstatsv1.CoderdService_RegisterAgents_FullMethodName: registrations,
		agentstatsv1.CoderdService_SyncAgents_FullMethodName:     registrations,
		agentstatsv1.CoderdService_PushMetrics_FullMethodName:    pushes,
	}
}

// reservation is the share of one call in a budget. It has the estimates of received
// messages that are not processed yet, and what is kept of the others.
type reservation struct {
	budget *byteBudget // nil: the call has none

	mu sync.Mutex
	// Guarded by mu.
	waiting []int
	kept    int
	closed  bool
	sent    int                         // bytes on the wire, without a result yet
	refused []agent.RegistrationRefusal // of messages that did not decode as a whole
}

type reservationKey struct{}

// reservationFrom returns that of a call of coderd.
func reservationFrom(ctx context.Context) *reservation {
	r, _ := ctx.Value(reservationKey{}).(*reservation)
	if r == nil {
		return &reservation{}
	}
	return r
}

// addSent counts received bytes. markAnswered resets them, as they had a result.
func (r *reservation) addSent(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent += n
}

func (r *reservation) markAnswered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = 0
}

// addRefused adds registrations that could not be decoded, which takeRefused returns.
func (r *reservation) addRefused(refused []agent.RegistrationRefusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = append(r.refused, refused...)
}

func (r *reservation) takeRefused() []agent.RegistrationRefusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	refused := r.refused
	r.refused = nil
	return refused
}

// reserve takes n bytes for a message that is about to be decoded; an error refuses
// it.
func (r *reservation) reserve(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.budget == nil {
		return nil
	}
	if r.closed { // the goroutine that reads for the handler was slower
		return grpcserver.ErrDraining
	}
	if err := r.budget.acquire(n); err != nil {
		return err
	}
	r.waiting = append(r.waiting, n)
	return nil
}

// keepBytes reduces the estimate of the oldest waiting message to the bytes that
// are kept of it.
func (r *reservation) keepBytes(kept int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 {
		return
	}
	r.budget.release(r.waiting[0] - kept)
	r.waiting = r.waiting[1:]
	r.kept += kept
}

// releaseKept releases what was kept.
func (r *reservation) releaseKept() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.releaseKeptLocked()
}

func (r *reservation) releaseKeptLocked() {
	if r.budget != nil {
		r.budget.release(r.kept)
		r.kept = 0
	}
}

// close releases everything. It returns the received bytes that had no result.
func (r *reservation) close() (sent int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.releaseKeptLocked()
	for _, n := range r.waiting {
		r.budget.release(n)
	}
	r.waiting, r.closed = nil, true
	return r.sent
}

// boundStream bounds what coderd's messages take in memory: each message, and all
// messages of the calls that share a budget. It paces calls without a result.
func (s *Service) boundStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	reserved := &reservation{budget: s.byteBudgets[info.FullMethod]}
	defer reserved.close()
	ctx, cancel := context.WithCancel(context.WithValue(stream.Context(), reservationKey{}, reserved))
	defer cancel()
	err := handler(srv, &boundedStream{ServerStream: stream, ctx: ctx, reserved: reserved, decoders: s.decoders, limit: s.server.Options().MaxMessageBytes})
	cancel() // no further message is handed to the handler
	sent := reserved.close()
	if call, ok := stream.(grpcserver.Call); ok && reserved.budget != nil && isFutile(err, sent) {
		s.futile.await(call, sent, s.server.Draining())
	}
	return err
}

// boundedStream is a stream of coderd's.
type boundedStream struct {
	grpc.ServerStream
	ctx      context.Context
	reserved *reservation
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
	r := boundedRequest{message: message, reserved: b.reserved, decoders: b.decoders, limit: b.limit}
	if err := b.ServerStream.RecvMsg(&r); err != nil {
		return err
	}
	return r.refused
}

// boundedRequest makes the codec decode a message within a limit of memory.
type boundedRequest struct {
	message  proto.Message
	reserved *reservation
	decoders chan struct{} // a semaphore of large messages that are being decoded
	limit    int
	refused  error // the status that refuses the message
}

// largeMessage is the size in bytes above which messages wait to be decoded. At most
// half as many as there are processors are decoded at once, so that agents are served
// meanwhile.
const largeMessage = 64 << 10

// UnmarshalMessage implements Unmarshaler. The error is always nil. If the message is
// refused, r.refused is set.
func (r *boundedRequest) UnmarshalMessage(data mem.BufferSlice) error {
	if data.Len() > largeMessage {
		r.decoders <- struct{}{}
		defer func() { <-r.decoders }()
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	encoded := buffer.ReadOnlyData()
	r.reserved.addSent(len(encoded))
	estimator := coderdRequests[r.message.ProtoReflect().Descriptor().FullName()]
	n, err := grpcserver.FitsDecoded(estimator, r.message, encoded, r.limit, grpcserver.FlagMessageBytes)
	if err == nil {
		err = r.reserved.reserve(n)
	}
	if err == nil && proto.Unmarshal(encoded, r.message) != nil {
		refused, ok := decodeApart(r.message, encoded)
		if !ok {
			err = grpcserver.Malformed(r.message, encoded)
		}
		r.reserved.addRefused(refused)
	}
	r.refused = err
	return nil
}

// coderdRequests estimates what coderd's requests take in memory, by the name of their
// type.
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
