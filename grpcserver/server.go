// Package grpcserver is a gRPC server that authenticates its callers, agents and
// coderd, and bounds what they may cost.
//
// It serves what is registered, gRPC's health service and, if asked to, its
// reflection. Health and reflection are open to anyone who reaches the listener.
// They show the published contract, and whether the service is up. Of all other
// calls nothing but the headers is read before the caller is known.
package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/recurring"
)

// stopTimeout bounds what is left after the drain: calls without a stream.
const stopTimeout = 2 * time.Second

// drainSpread of the drain's time is what the requests to connect again are spread
// over: evenly, so that the other replicas are not stormed. In the rest the last
// agents that were asked can end their streams.
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

// Server serves registered services, health and reflection.
type Server struct {
	opts    atomic.Pointer[Options] // Reconfigure replaces them
	metrics *metrics
	log     *slog.Logger
	// What the log has of calls: that they failed, and that handlers did or panicked.
	failures, faults, panics recurring.Events

	auth     *authenticator
	grpc     *grpc.Server
	health   *health.Server
	services map[string]*Service // by name; not changed once the server serves
	streams  *gate
	codec    codec
	// What callers may have at once.
	coderdCalls  *Slots
	pusherCalls  *Slots // of those who may only push, or read
	agentStreams *agentStreams
	// Large messages that are being received, by role.
	receiving   map[Role]*receiving
	unread      *unreadStreams
	openCalls   openCalls
	connections *connections
	rpc         *grpcprom.ServerMetrics
	// refused is called as OnRefused says; nil: nothing is.
	refused func(id agent.ID, err error)
	// background are the goroutines of Go.
	background sync.WaitGroup
}

// New returns a Server that serves once, by Serve, after its services are
// registered. agents finds agents by their tokens. It registers its metrics, gRPC's
// among them, with reg.
func New(agents Agents, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Server, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("grpcserver options: %w", err)
	}
	rpc := grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram())
	if err := reg.Register(rpc); err != nil {
		return nil, fmt.Errorf("register the metrics of gRPC: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("grpcserver: %w", err)
	}
	s := &Server{
		metrics:  m,
		log:      log,
		health:   health.NewServer(),
		services: make(map[string]*Service),
		streams:  newGate(),
		codec:    codec{protoCodec},

		coderdCalls:  NewSlots(opts.MaxCoderdCalls),
		pusherCalls:  NewSlots(pusherCalls(&opts)),
		agentStreams: newAgentStreams(opts.MaxStreamsPerAgent),
		receiving:    newReceivingOf(&opts),
		connections:  newConnections(&opts, m, log),
		rpc:          rpc,
	}
	s.opts.Store(&opts)
	s.unread = newUnreadStreams(opts.MaxStreamsPerAgent, opts.MaxUnreadOfCoderd, s.connections, m.limited.WithLabelValues(limitedUnread))
	s.auth = &authenticator{
		agents:        agents,
		clientSAN:     opts.CoderdClientSAN,
		metrics:       m,
		log:           log,
		roleOf:        s.roleOf,
		isFor:         s.isFor,
		authenticated: s.connections.authenticated,
		turnedAway:    s.connections.turnedAway,
	}
	s.auth.tokens.now.Store(&opts.Tokens)
	m.countTokens(&opts.Tokens)
	if err := s.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("grpcserver: %w", err)
	}
	s.grpc = grpc.NewServer(s.serverOptions(rpc)...)
	healthpb.RegisterHealthServer(registrar{s.grpc}, s.health)
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	if opts.Reflection {
		reflection.Register(registrar{s.grpc})
	}
	return s, nil
}

// Options returns the options in force, with their defaults. The tokens are those of New.
func (s *Server) Options() Options { return *s.opts.Load() }

// HelloTimeout returns the option of that name. Options would put a copy of all on the
// stack, where what serves a stream keeps it as long as the stream is open.
func (s *Server) HelloTimeout() time.Duration { return s.opts.Load().HelloTimeout }

// MaxAgentMessageBytes returns the option of that name, as HelloTimeout does.
func (s *Server) MaxAgentMessageBytes() int { return s.opts.Load().MaxAgentMessageBytes }

// OnRefused has f called with each agent whose call is refused before its service gets it,
// and the status. It is called before Serve.
func (s *Server) OnRefused(f func(id agent.ID, err error)) { s.refused = f }

// Go runs f in a goroutine that Serve waits for. f ends soon after the handler that
// called Go.
func (s *Server) Go(f func()) { s.background.Go(f) }

func (s *Server) serverOptions(rpc *grpcprom.ServerMetrics) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.ChainStreamInterceptor(
			s.sizeStream,
			rpc.StreamServerInterceptor(),
			s.recoverStream(),
			s.guardStream,
			s.auth.stream,
			s.limitStream,
			s.interceptStream,
		),
		grpc.InTapHandle(s.connections.tap),
		grpc.ForceServerCodecV2(s.codec),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxConcurrentStreams(s.opts.Load().MaxStreams),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ConnectionTimeout(s.opts.Load().HelloTimeout),
		// A dead agent is noticed within a minute and a half, although nobody
		// sends to it.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, Timeout: 20 * time.Second, MaxConnectionIdle: s.opts.Load().ConnectionIdleTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	}
	if s.opts.Load().Credentials != nil {
		opts = append(opts, grpc.Creds(s.opts.Load().Credentials))
	}
	return opts
}

// Serve serves until ctx is cancelled. Then it lets nobody in any more, asks the
// agents to connect again elsewhere or later, waits for them within
// Options.DrainTimeout, stops, and returns nil. It closes the listener. An error
// is the listener's.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	s.rpc.InitializeMetrics(s.grpc)
	var serving sync.WaitGroup
	healthCtx, stopHealth := context.WithCancel(ctx)
	serving.Go(func() { s.watchHealth(healthCtx) })
	failed := make(chan error, 1)
	serving.Go(func() { s.watchIdle(healthCtx) })
	serving.Go(func() { failed <- s.grpc.Serve(&limitedListener{Listener: lis, connections: s.connections}) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopHealth()
	s.drain(err == nil)
	serving.Wait()
	s.background.Wait()
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
	// Every connection refuses new streams at once. So who shares one among many has
	// another one by the time that it is needed.
	stopped := make(chan struct{})
	var graceful sync.WaitGroup
	graceful.Go(func() {
		s.grpc.GracefulStop()
		close(stopped)
	})
	if patience {
		patient, cancel := context.WithTimeout(context.Background(), s.opts.Load().DrainTimeout)
		s.askToReconnect(s.streams.allAgents(), left)
		select {
		case <-left:
		case <-patient.Done():
		}
		cancel()
	}
	s.streams.stop()
	for _, a := range s.streams.allAgents() {
		go a.stream.CloseStream(ErrDraining) // it may wait for the agent
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

// SetDraining sends agents away, or lets them come again. Their new streams are refused as
// while the server stops; open ones are asked to connect elsewhere, over most of
// Options.DrainTimeout. streams are those that were open when that began. It does not block.
func (s *Server) SetDraining(draining bool) (streams int) {
	if !draining {
		s.streams.letCome()
		return 0
	}
	agents, again := s.streams.sendAway()
	if again == nil {
		return len(s.streams.allAgents())
	}
	s.background.Go(func() { s.askToReconnect(agents, again) })
	return len(agents)
}

// IsDraining reports whether SetDraining sends agents away.
func (s *Server) IsDraining() bool { return s.streams.isAway() }

// askToReconnect asks agents one after another to connect again, over most of
// Options.DrainTimeout. It returns when all were asked, or done is closed.
func (s *Server) askToReconnect(agents []*admitted, done <-chan struct{}) {
	delays := make([]time.Duration, len(agents))
	for i := range delays {
		delays[i] = time.Duration(rand.Float64() * drainSpread * float64(s.opts.Load().DrainTimeout))
	}
	slices.Sort(delays)
	start := time.Now()
	next := time.NewTimer(0)
	defer next.Stop()
	for i := 0; i < len(agents); {
		select {
		case <-done:
			return
		case <-next.C:
		}
		passed := time.Since(start)
		for ; i < len(delays) && delays[i] <= passed; i++ {
			agents[i].stream.AskToReconnect()
		}
		if i < len(delays) {
			next.Reset(delays[i] - passed)
		}
	}
}

// watchHealth updates the health service each healthInterval.
func (s *Server) watchHealth(ctx context.Context) {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		s.setHealth(ctx)
		s.connections.coderds.logEnded()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Server) setHealth(ctx context.Context) {
	whole := healthpb.HealthCheckResponse_SERVING // while the services of agents are
	for name, service := range s.services {
		status := healthpb.HealthCheckResponse_SERVING
		if !service.isReady(ctx) || service.Role == RoleAgent && s.IsDraining() {
			status = healthpb.HealthCheckResponse_NOT_SERVING
			if service.Role == RoleAgent {
				whole = status
			}
		}
		s.health.SetServingStatus(name, status)
	}
	s.health.SetServingStatus("", whole)
}
