// Package agentapi is the gRPC edge of the service: it authenticates agents and
// coderd, validates and converts what they send, and calls the components.
//
// It serves agentstats.v1.AgentService and agentstats.v1.CoderdService, gRPC's
// health service and, if asked to, its reflection. Health and reflection are open
// to anyone who reaches the listener: they tell what the published contract tells,
// and whether the service is up. Of all other calls nothing but the headers is
// read before the caller is known.
package agentapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Stats takes in reports of stats and samples. It touches memory only. The
// report is valid during the call; one with another epoch than the agent's open
// session is ignored. created is the number of series that the report has and
// that nobody served before.
type Stats interface {
	Report(id agent.ID, epoch int64, now time.Time, r agent.Report) (refused []agent.Refusal, created int)
}

// Metadata takes in metadata that is to be stored. It touches memory only. The
// texts of the report are valid during the call.
type Metadata interface {
	Add(now time.Time, r agent.MetadataReport) []agent.Refusal
}

// MetadataReader reads stored metadata of at most 1,000 agents, ordered by agent and
// key. It stops before the values of an agent with which they would take more than limit
// bytes, unless it is the first one that has any, and returns the agents that are left.
type MetadataReader interface {
	MetadataWithin(ctx context.Context, ids []agent.ID, limit int) (rows []agent.Metadata, left []agent.ID, err error)
}

// MetadataNews tells whose stored metadata has changed. The function must not
// block; nil ids tell that news may have been missed.
type MetadataNews interface {
	SubscribeMetadata(f func(ids []agent.ID)) (cancel func(), err error)
}

// Reports keeps what agents report for those who watch it.
type Reports interface {
	// Wanted tells whether anybody does: a report costs no more than that otherwise.
	Wanted() bool
	// Add takes in a report. It touches memory only and copies the data.
	Add(sum *agent.ReportSum)
	// Serve serves a stream until acks is closed, ctx ends, or another stream has the
	// name. send gets one message at a time, and no batch before the one before is acked.
	Serve(ctx context.Context, w agent.ReportWatch, acks <-chan int64, send func(agent.ReportMessage) error) error
}

// Components are what a Server stands before; all are required.
type Components struct {
	Fleet    *fleet.Fleet
	Stats    Stats
	Metadata Metadata
	Reader   MetadataReader
	News     MetadataNews
	Pushes   Pushes
	Reports  Reports
}

// stopTimeout bounds what is left after the drain: calls without a stream.
const stopTimeout = 2 * time.Second

// drainSpread of the drain's time is what the requests to connect again are
// spread over: evenly, so that the other replicas are not stormed. In the rest
// the last ones to be asked can leave.
const drainSpread = 0.75

// healthInterval is how late the health service may be.
const healthInterval = time.Second

// Agents' connections are many and mostly idle: buffers of 8 KB rather than 32
// save about 13 KB on each TLS connection.
const bufferBytes = 8 << 10

// Windows of fixed size bound what a peer can have lie here unread. To find better
// ones, gRPC would send a ping for each report that comes alone, and have it
// answered. A report is some 3 KB; at 10 ms to coderd, 256 KB are 25 MB/s.
const (
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
)

// Server serves agents and coderd.
type Server struct {
	Components
	opts    Options
	metrics *metrics
	log     *slog.Logger
	auth    *authenticator
	grpc    *grpc.Server
	health  *health.Server
	streams *gate
	watches slots
	syncs   slots
	pushes  slots
	// watchBytes are what watches of metadata share.
	watchBytes *watchBytes
	// byteBudgets are by the full name of the method.
	byteBudgets map[string]*byteBudget
	// What callers may have at once.
	codec        codec
	coderdCalls  slots
	agentStreams *agentStreams
	// Large messages that are being received.
	receivingAgents, receivingCoderd *receiving
	unread                           *unreadStreams
	openCalls                        openCalls
	connections                      *connections
	// instances of coderd that push.
	instances *pushInstances
	// receivers are the goroutines that read from streams; each ends soon after
	// the handler that it reads for.
	receivers sync.WaitGroup
}

// NewServer returns a Server that serves once, by Serve. It registers its
// metrics, gRPC's among them, with reg.
func NewServer(c Components, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Server, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("agentapi options: %w", err)
	}
	switch {
	case c.Pushes == nil:
		return nil, errors.New("agentapi components: pushes is absent")
	case c.Reports == nil:
		return nil, errors.New("agentapi components: reports is absent")
	}
	rpc := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram())
	if err := reg.Register(rpc); err != nil {
		return nil, fmt.Errorf("register the metrics of gRPC: %w", err)
	}
	m := newMetrics(reg)
	s := &Server{
		Components: c,
		opts:       opts,
		metrics:    m,
		log:        log,
		auth: &authenticator{
			fleet:     c.Fleet,
			tokenHash: opts.CoderdTokenHash,
			clientSAN: opts.CoderdClientSAN,
			metrics:   m,
			log:       log,
		},
		health:  health.NewServer(),
		streams: newGate(),
		watches: newSlots(opts.MaxWatches),
		syncs:   newSlots(opts.MaxSyncs),
		pushes:  newSlots(opts.MaxPushes),

		instances: newPushInstances(),

		codec:        codec{CodecV2: encoding.GetCodecV2("proto"), limit: opts.MaxAgentMessageBytes},
		coderdCalls:  newSlots(opts.MaxCoderdCalls),
		agentStreams: newAgentStreams(opts.MaxStreamsPerAgent),
		connections:  newConnections(&opts, m),

		receivingAgents: newReceiving(opts.MaxReceivingBytes / 2),
		receivingCoderd: newReceiving(opts.MaxReceivingBytes / 2),
	}
	s.unread = newUnreadStreams(opts.MaxStreamsPerAgent, opts.MaxWatches, s.connections, m.limited.WithLabelValues(limitedUnread))
	s.watchBytes = newWatchBytes(&s.opts, m)
	s.shareBytes(reg)
	s.auth.authenticated = s.connections.authenticated
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_grpc_connections", Help: "Connections of the gRPC listener.",
	}, func() float64 { return float64(s.connections.count()) }))
	for role, r := range map[string]*receiving{roleAgent: s.receivingAgents, roleCoderd: s.receivingCoderd} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_grpc_receiving_bytes", Help: "Bytes of messages above 64 KiB that are being received, or have room for it.",
			ConstLabels: prometheus.Labels{"role": role},
		}, func() float64 { return float64(r.inUse()) }))
	}
	s.grpc = grpc.NewServer(s.serverOptions(rpc)...)
	served := registrar{s.grpc}
	agentstatsv1.RegisterAgentServiceServer(served, &agentService{Server: s})
	agentstatsv1.RegisterCoderdServiceServer(served, &coderdService{Server: s})
	healthpb.RegisterHealthServer(served, s.health)
	if opts.Reflection {
		reflection.Register(served)
	}
	rpc.InitializeMetrics(s.grpc)
	for _, service := range services {
		s.health.SetServingStatus(service, healthpb.HealthCheckResponse_NOT_SERVING)
	}
	return s, nil
}

// services are those whose health is told; the empty name is the whole server.
var services = [...]string{
	"",
	agentstatsv1.AgentService_ServiceDesc.ServiceName,
	agentstatsv1.CoderdService_ServiceDesc.ServiceName,
}

func (s *Server) serverOptions(rpc *grpcprom.ServerMetrics) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.ChainStreamInterceptor(
			s.sizeStream,
			rpc.StreamServerInterceptor(),
			s.recoverStream(),
			s.guardStream,
			s.auth.stream,
			s.limitStream,
			s.boundStream,
		),
		grpc.InTapHandle(s.connections.tap),
		grpc.ForceServerCodecV2(s.codec),
		grpc.MaxRecvMsgSize(s.opts.MaxMessageBytes),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxConcurrentStreams(s.opts.MaxStreams),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ConnectionTimeout(s.opts.HelloTimeout),
		// A dead agent is noticed within a minute and a half, although nobody
		// sends to it.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, Timeout: 20 * time.Second, MaxConnectionIdle: s.opts.ConnectionIdleTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	}
	if s.opts.Credentials != nil {
		opts = append(opts, grpc.Creds(s.opts.Credentials))
	}
	return opts
}

// Serve serves until ctx is cancelled. Then it lets nobody in any more, asks the
// agents to connect again elsewhere or later, waits for them within
// Options.DrainTimeout, stops, and returns nil. It closes the listener. An error
// is the listener's.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	var background sync.WaitGroup
	healthCtx, stopHealth := context.WithCancel(ctx)
	background.Go(func() { s.watchHealth(healthCtx) })
	failed := make(chan error, 1)
	background.Go(func() { s.watchIdle(healthCtx) })
	background.Go(func() { failed <- s.grpc.Serve(&limitedListener{Listener: lis, connections: s.connections}) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopHealth()
	s.drain(err == nil)
	background.Wait()
	s.receivers.Wait()
	s.connections.close()
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve gRPC: %w", err)
	}
	return nil
}

// drain ends everything. With patience the agents are asked first.
func (s *Server) drain(patience bool) {
	s.health.Shutdown()
	left := s.streams.drain()
	// Every connection is told at once that it takes no new streams: whoever
	// shares one among many has another by the time that they ask for it.
	stopped := make(chan struct{})
	var graceful sync.WaitGroup
	graceful.Go(func() {
		s.grpc.GracefulStop()
		close(stopped)
	})
	if patience {
		s.askToLeave(left)
	}
	s.streams.stop()
	for _, c := range s.streams.connections() {
		go c.finish(errDraining) // it may wait for the agent
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-stopped:
	case <-timeout.C:
		s.grpc.Stop()
	}
	graceful.Wait()
}

// askToLeave asks the agents one after another to connect again, and waits until
// all streams have left, within Options.DrainTimeout.
func (s *Server) askToLeave(left <-chan struct{}) {
	agents := s.streams.connections()
	turns := make([]time.Duration, len(agents))
	for i := range turns {
		turns[i] = time.Duration(rand.Float64() * drainSpread * float64(s.opts.DrainTimeout))
	}
	slices.Sort(turns)
	start := time.Now()
	next := time.NewTimer(0)
	defer next.Stop()
	for i := 0; ; {
		select {
		case <-left:
			return
		case <-next.C:
		}
		passed := time.Since(start)
		for ; i < len(turns) && turns[i] <= passed; i++ {
			agents[i].askToLeave()
		}
		switch {
		case i < len(turns):
			next.Reset(turns[i] - passed)
		case passed < s.opts.DrainTimeout:
			next.Reset(s.opts.DrainTimeout - passed)
		default:
			return
		}
	}
}

// watchHealth keeps the health service truthful.
func (s *Server) watchHealth(ctx context.Context) {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		s.setHealth(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Server) setHealth(ctx context.Context) {
	agents := s.Fleet.Ready() == nil
	coderd := agents
	if coderd && s.opts.StoreReady != nil {
		askCtx, cancel := context.WithTimeout(ctx, healthInterval)
		coderd = s.opts.StoreReady(askCtx) == nil
		cancel()
	}
	for i, serving := range [...]bool{agents, agents, coderd} {
		status := healthpb.HealthCheckResponse_NOT_SERVING
		if serving {
			status = healthpb.HealthCheckResponse_SERVING
		}
		s.health.SetServingStatus(services[i], status)
	}
}

// slots bounds how many of something go on at once.
type slots chan struct{}

func newSlots(n int) slots { return make(slots, n) }

// take returns false if all slots are taken.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) free() { <-s }
