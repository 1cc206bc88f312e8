// Package coderdapi is the gRPC edge for coderd. It validates and converts coderd's
// requests, and calls the components. It serves agentstats.v1.CoderdService.
package coderdapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/recurring"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// MetadataReader reads stored metadata of at most 1,000 agents, ordered by agent and
// key. store.Store is one. It reads agents as long as their values take at most limit
// bytes in memory, and at least one. left are the agents that were not read.
type MetadataReader interface {
	MetadataWithin(ctx context.Context, ids []agent.ID, limit int) (rows []agent.Metadata, left []agent.ID, err error)
}

// MetadataSubscriber calls f with the agents whose stored metadata has changed. f
// must not block; nil ids mean that notifications may have been missed.
type MetadataSubscriber interface {
	SubscribeMetadata(f func(ids []agent.ID)) (cancel func(), err error)
}

// Pushes stores snapshots of coderd's families, of each instance one at a time. It
// returns once the snapshot is durable, with what it refused of it.
type Pushes interface {
	Push(ctx context.Context, now time.Time, p agent.Push) ([]agent.PushRefusal, error)
}

// ReportStreams serves streams of watched reports. reports.Reports is one.
type ReportStreams interface {
	// Serve serves a stream until acks is closed, ctx is cancelled, or another stream
	// owns the name. It calls send with one message at a time, and with a batch only
	// after the one before was acked.
	Serve(ctx context.Context, w agent.ReportWatch, acks <-chan int64, send func(agent.ReportMessage) error) error
}

// Components are what a CoderdService calls; all are required.
type Components struct {
	Fleet      *fleet.Fleet
	Reader     MetadataReader
	Subscriber MetadataSubscriber
	Pushes     Pushes
	Reports    ReportStreams
	Tasks      Tasks
}

var _ agentstatsv1.CoderdServiceServer = (*Service)(nil)

// Service serves coderd.
type Service struct {
	agentstatsv1.UnsafeCoderdServiceServer // without methods: none may be missing
	Components
	server  *grpcserver.Server
	opts    atomic.Pointer[Options] // Reconfigure replaces them
	metrics *metrics
	log     *slog.Logger
	// What the log has of registrations that are refused, and of pushes that are not taken in.
	refusedRegistrations, pushesWithoutRoom, rejectedPushes, failedPushes recurring.Events
	// Limits of what may be under way at once.
	watches, syncs, pushes *grpcserver.Slots
	// pushersPushes are those of pushes that those may have who may only push,
	// operatorsWatches those of watches that those may have who may only read.
	pushersPushes, operatorsWatches *grpcserver.Slots
	// watchBytes is the memory that watches and reads of metadata share.
	watchBytes *watchBytes
	// byteBudgets are by the full name of the method.
	byteBudgets map[string]*byteBudget
	futile      *futile
	decoders    chan struct{} // see largeMessage
	// instances of coderd that push.
	instances *pushInstances
}

// New returns a Service that the server serves: it is registered with
// it. Its metrics are registered with reg.
func New(server *grpcserver.Server, c Components, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Service, error) {
	opts = opts.withDefaults()
	if err := opts.validate(server.Options().MaxMessageBytes); err != nil {
		return nil, fmt.Errorf("coderdapi options: %w", err)
	}
	switch {
	case c.Pushes == nil:
		return nil, errors.New("coderdapi components: pushes is absent")
	case c.Reports == nil:
		return nil, errors.New("coderdapi components: reports is absent")
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("coderdapi: %w", err)
	}
	s := &Service{
		Components: c,
		server:     server,
		metrics:    m,
		log:        log,

		watches: grpcserver.NewSlots(opts.MaxWatches),
		syncs:   grpcserver.NewSlots(opts.MaxSyncs),
		pushes:  grpcserver.NewSlots(opts.MaxPushes),

		pushersPushes:    grpcserver.NewSlots(opts.pushersPushes()),
		operatorsWatches: grpcserver.NewSlots(opts.operatorsWatches()),
		watchBytes:       newWatchBytes(&opts, m),
		futile:           newFutile(m),
		decoders:         make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		instances:        newPushInstances(),
	}
	s.opts.Store(&opts)
	s.shareBytes()
	if err := s.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("coderdapi: %w", err)
	}
	server.Register(grpcserver.Service{
		Desc:       &agentstatsv1.CoderdService_ServiceDesc,
		Impl:       s,
		Role:       grpcserver.RoleCoderd,
		ForPushers: []string{agentstatsv1.CoderdService_PushMetrics_FullMethodName},
		ForOperators: []string{
			agentstatsv1.CoderdService_ListAgents_FullMethodName, agentstatsv1.CoderdService_WatchAgents_FullMethodName,
			agentstatsv1.CoderdService_GetMetadata_FullMethodName, agentstatsv1.CoderdService_WatchMetadata_FullMethodName,
		},
		MessageBytes: messageBytes,
		Intercept:    s.boundStream,
		Ready:        s.ready,
	})
	return s, nil
}

// Options returns the options in force, with their defaults.
func (s *Service) Options() Options { return *s.opts.Load() }

// Reconfigure changes the options but MaxWatchesBytes and StoreReady, which are those of
// New. MaxWatchBytes and WatchInterval are for new watches. What is under way goes on, also
// above a lowered limit. After an error nothing has changed.
func (s *Service) Reconfigure(opts Options) error {
	before := s.opts.Load()
	opts.MaxWatchesBytes, opts.StoreReady = before.MaxWatchesBytes, before.StoreReady
	opts = opts.withDefaults()
	if err := opts.validate(s.server.Options().MaxMessageBytes); err != nil {
		return fmt.Errorf("coderdapi options: %w", err)
	}
	s.opts.Store(&opts)
	s.watches.SetLimit(opts.MaxWatches)
	s.syncs.SetLimit(opts.MaxSyncs)
	s.pushes.SetLimit(opts.MaxPushes)
	s.pushersPushes.SetLimit(opts.pushersPushes())
	s.operatorsWatches.SetLimit(opts.operatorsWatches())
	s.byteBudgets[agentstatsv1.CoderdService_SyncAgents_FullMethodName].setLimit(opts.MaxSyncBytes)
	s.byteBudgets[agentstatsv1.CoderdService_PushMetrics_FullMethodName].setLimit(opts.MaxPushesBytes)
	return nil
}

// ready returns why coderd cannot be served now.
func (s *Service) ready(ctx context.Context) error {
	if err := s.Fleet.Ready(); err != nil || s.opts.Load().StoreReady == nil {
		return err
	}
	return s.opts.Load().StoreReady(ctx)
}

// failure returns the status for coderd of an error of the components. An internal
// error is logged. Its text does not reach coderd.
func (s *Service) failure(ctx context.Context, doing string, err error) error {
	switch {
	case errors.Is(err, fleet.ErrTokens):
		return grpcserver.Invalid("agents", "%v", err)
	case errors.Is(err, fleet.ErrTooMany), errors.Is(err, fleet.ErrTooLarge):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, fleet.ErrNeedsForce):
		return status.Error(codes.FailedPrecondition, err.Error()+"; force: want true to do so")
	case errors.Is(err, fleet.ErrUnavailable):
		return grpcserver.ErrNotLoaded
	}
	return s.server.Failure(ctx, doing, err)
}

// Limits of messages without an option, as they follow from the contract.
const (
	// maxIDsBytes bounds a message that names at most maxReadAtOnce agents, of 18 bytes
	// each, or tasks. It fits some more, so that an error can name those that are too many.
	maxIDsBytes = 32 << 10
	// maxDeregisterBytes bounds a message that names at most maxRegisteredAtOnce agents
	// and as many workspaces.
	maxDeregisterBytes = 512 << 10
	// maxSmallRequest bounds a message of a page, or of a name and a position.
	maxSmallRequest = 4 << 10
	// maxOfRole leaves a message the limit of the role, grpcserver.Options.MaxMessageBytes.
	maxOfRole = math.MaxInt
)

// messageBytes are the limits of the messages of each method.
var messageBytes = map[string]int{
	agentstatsv1.CoderdService_RegisterAgents_FullMethodName:   maxOfRole,
	agentstatsv1.CoderdService_SyncAgents_FullMethodName:       maxOfRole,
	agentstatsv1.CoderdService_PushMetrics_FullMethodName:      maxOfRole,
	agentstatsv1.CoderdService_GetMetadata_FullMethodName:      maxIDsBytes,
	agentstatsv1.CoderdService_WatchMetadata_FullMethodName:    maxIDsBytes,
	agentstatsv1.CoderdService_WatchAgents_FullMethodName:      maxIDsBytes,
	agentstatsv1.CoderdService_AcquireTasks_FullMethodName:     maxIDsBytes,
	agentstatsv1.CoderdService_DeregisterAgents_FullMethodName: maxDeregisterBytes,
	agentstatsv1.CoderdService_ListAgents_FullMethodName:       maxSmallRequest,
	agentstatsv1.CoderdService_WatchStats_FullMethodName:       maxSmallRequest,
}
