// Package agentapi is the gRPC edge of the service: it authenticates agents and
// coderd, validates and converts what they send, and calls the components.
//
// It serves agentstats.v1.AgentService and agentstats.v1.CoderdService, gRPC's
// health service and its reflection. Health and reflection are open to anyone
// who reaches the listener: they tell what the published contract tells, and
// whether the service is up.
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
	"google.golang.org/grpc/credentials"
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
// session is ignored.
type Stats interface {
	Report(id agent.ID, epoch int64, now time.Time, r agent.Report) []agent.Refusal
}

// Metadata takes in metadata that is to be stored. It touches memory only. The
// texts of the report are valid during the call.
type Metadata interface {
	Add(now time.Time, r agent.MetadataReport) []agent.Refusal
}

// MetadataReader reads stored metadata, ordered by agent and key.
type MetadataReader interface {
	Metadata(ctx context.Context, ids []agent.ID) ([]agent.Metadata, error)
}

// MetadataNews tells whose stored metadata has changed. The function must not
// block; nil ids tell that news may have been missed.
type MetadataNews interface {
	SubscribeMetadata(f func(ids []agent.ID)) (cancel func(), err error)
}

// Components are what a Server stands before; all but Bus are required.
type Components struct {
	Fleet    *fleet.Fleet
	Stats    Stats
	Metadata Metadata
	Reader   MetadataReader
	News     MetadataNews
	Pushes   Pushes
	// Bus relays the reports that watchers wait for between replicas; nil: there
	// is one replica.
	Bus Bus
}

// Limits are what agents are told that the components accept of one agent.
type Limits struct {
	// Series that an agent may have at once.
	Series int
	// MetadataKeyBytes of one key; default agent.MaxMetadataKeyBytes.
	// MetadataReportKeyBytes in one report; default 6144.
	MetadataKeyBytes, MetadataReportKeyBytes int
	// MetadataValueBytes and MetadataErrorBytes of one value; default 2048.
	MetadataValueBytes, MetadataErrorBytes int
}

// Options are the knobs of a Server. A zero field takes its default.
type Options struct {
	// Credentials of the listener; nil: plaintext.
	Credentials credentials.TransportCredentials
	// CoderdTokenHash is the SHA-256 of coderd's token; zero: it has none.
	CoderdTokenHash [32]byte
	// CoderdClientSAN is the DNS name in a verified client certificate that
	// makes its holder coderd; empty: none does.
	CoderdClientSAN string

	// ReplicaID is this replica's, chosen at random by each process; zero: there
	// is no Bus.
	ReplicaID agent.ID

	// ReportInterval that agents are told; default 30 s, at least 1 s.
	ReportInterval time.Duration
	Limits         Limits

	// MaxMessageBytes of one request, encoded; default 4 MiB.
	MaxMessageBytes int
	// MaxAgentMessageBytes of one request of an agent; default 1 MiB.
	MaxAgentMessageBytes int
	// MaxStreams on one connection; default 65536, as coderd relays many.
	MaxStreams uint32
	// MaxWatches at once, of all kinds together; default 256. MaxSyncs at once;
	// default 4: each holds the whole set in memory.
	MaxWatches, MaxSyncs int
	// MaxPushes is how many instances of coderd may push at once; default 256.
	MaxPushes int
	// MaxPushBytes of one snapshot of an instance, with 24 for each family;
	// default 64 MiB. Of all pushes under way together: MaxPushesBytes, default
	// 256 MiB.
	MaxPushBytes, MaxPushesBytes int
	// MaxRegistrationBytes of one registration, encoded; default 64 KiB.
	MaxRegistrationBytes int
	// MaxSyncBytes is what registrations and syncs under way may take in memory
	// together; default 256 MiB, room for a sync of 200,000 agents.
	MaxSyncBytes int
	// MaxDeclaredKeys is how many metadata keys a registration may declare;
	// default 256.
	MaxDeclaredKeys int

	// HelloTimeout bounds the wait for the first message; default 10 s.
	HelloTimeout time.Duration
	// GoodbyeTimeout bounds the wait for the last ack; default 15 s.
	GoodbyeTimeout time.Duration
	// SyncTimeout bounds a sync; default 5 min.
	SyncTimeout time.Duration
	// WatchInterval is the time between two re-reads of what is watched, which
	// repair missed news; default 30 s.
	WatchInterval time.Duration
	// StatsRetention is how long a watch of stats that has a name goes on without
	// a stream, and how long reports wait for a replica that is silent; default
	// 10 min, the same on all replicas. MaxWatches of them at most do.
	StatsRetention time.Duration
	// DrainTimeout is the time that agents have to leave when the service
	// stops; default 10 s. They are asked one after another, over three quarters
	// of it. Serve returns at most stopTimeout later, and with a Bus
	// handOverTimeout and publishTimeout after that.
	DrainTimeout time.Duration

	// StoreReady returns why the database cannot be used now; nil: it is not
	// asked. CoderdService is served only while it returns nil.
	StoreReady func(ctx context.Context) error
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

func (o Options) withDefaults() Options {
	set(&o.ReportInterval, 30*time.Second)
	set(&o.Limits.MetadataKeyBytes, agent.MaxMetadataKeyBytes)
	set(&o.Limits.MetadataReportKeyBytes, 6144)
	set(&o.Limits.MetadataValueBytes, 2048)
	set(&o.Limits.MetadataErrorBytes, 2048)
	set(&o.MaxMessageBytes, 4<<20)
	set(&o.MaxAgentMessageBytes, 1<<20)
	set(&o.MaxStreams, 1<<16)
	set(&o.MaxWatches, 256)
	set(&o.MaxSyncs, 4)
	set(&o.MaxPushes, 256)
	set(&o.MaxPushBytes, 64<<20)
	set(&o.MaxPushesBytes, 256<<20)
	set(&o.MaxRegistrationBytes, 64<<10)
	set(&o.MaxSyncBytes, 256<<20)
	set(&o.MaxDeclaredKeys, 256)
	set(&o.HelloTimeout, 10*time.Second)
	set(&o.GoodbyeTimeout, 15*time.Second)
	set(&o.SyncTimeout, 5*time.Minute)
	set(&o.WatchInterval, 30*time.Second)
	set(&o.StatsRetention, 10*time.Minute)
	set(&o.DrainTimeout, 10*time.Second)
	return o
}

func set[T comparable](field *T, to T) {
	var zero T
	if *field == zero {
		*field = to
	}
}

func (o Options) validate() error {
	if o.ReportInterval < time.Second {
		return fmt.Errorf("report interval: want at least 1s, got %v", o.ReportInterval)
	}
	if o.MaxAgentMessageBytes > o.MaxMessageBytes {
		return fmt.Errorf("max agent message bytes: want at most the max message bytes of %d, got %d", o.MaxMessageBytes, o.MaxAgentMessageBytes)
	}
	for _, c := range []struct {
		name  string
		value int64
	}{
		{"max message bytes", int64(o.MaxMessageBytes)},
		{"max agent message bytes", int64(o.MaxAgentMessageBytes)},
		{"max watches", int64(o.MaxWatches)},
		{"max syncs", int64(o.MaxSyncs)},
		{"max pushes", int64(o.MaxPushes)},
		{"max push bytes", int64(o.MaxPushBytes)},
		{"max pushes bytes", int64(o.MaxPushesBytes)},
		{"max registration bytes", int64(o.MaxRegistrationBytes)},
		{"max sync bytes", int64(o.MaxSyncBytes)},
		{"max declared keys", int64(o.MaxDeclaredKeys)},
		{"hello timeout", int64(o.HelloTimeout)},
		{"goodbye timeout", int64(o.GoodbyeTimeout)},
		{"sync timeout", int64(o.SyncTimeout)},
		{"watch interval", int64(o.WatchInterval)},
		{"stats retention", int64(o.StatsRetention)},
		{"drain timeout", int64(o.DrainTimeout)},
	} {
		if c.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", c.name, c.value)
		}
	}
	return nil
}

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
	// byteBudgets are by the full name of the method.
	byteBudgets map[string]*byteBudget
	// instances of coderd that push.
	instances *pushInstances
	feed      *feed
	// statsNames are the watches of stats that have names.
	statsNames *statsNames
	relay      *relay // nil: there is one replica
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
	if c.Pushes == nil {
		return nil, errors.New("agentapi components: pushes is absent")
	}
	if (c.Bus == nil) != (opts.ReplicaID == agent.ID{}) {
		return nil, errors.New("agentapi: a bus needs the id of the replica, and the other way round")
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
		feed:      newFeed(),
	}
	s.shareBytes(reg)
	s.statsNames = newStatsNames(s.feed, opts.StatsRetention, opts.MaxWatches, c.Fleet.MaxAgents(), m)
	if c.Bus != nil {
		s.relay = newRelay(c.Bus, opts.ReplicaID, s.statsNames, log)
	}
	s.grpc = grpc.NewServer(s.serverOptions(rpc)...)
	agentstatsv1.RegisterAgentServiceServer(s.grpc, &agentService{Server: s})
	agentstatsv1.RegisterCoderdServiceServer(s.grpc, &coderdService{Server: s})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
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
		grpc.ChainUnaryInterceptor(
			rpc.UnaryServerInterceptor(),
			s.recoverUnary(),
			s.guardUnary,
			s.auth.unary,
		),
		grpc.ChainStreamInterceptor(
			rpc.StreamServerInterceptor(),
			s.recoverStream(),
			s.guardStream,
			s.auth.stream,
			s.boundStream,
		),
		grpc.ForceServerCodecV2(codec{CodecV2: encoding.GetCodecV2("proto"), limit: s.opts.MaxAgentMessageBytes}),
		grpc.MaxRecvMsgSize(s.opts.MaxMessageBytes),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxConcurrentStreams(s.opts.MaxStreams),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ConnectionTimeout(20 * time.Second),
		// A dead agent is noticed within a minute and a half, although nobody
		// sends to it.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
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
// is the listener's, or that of the bus at the start.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	var background sync.WaitGroup
	relayCtx, stopRelay := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRelay()
	if s.relay != nil {
		if err := s.relay.begin(); err != nil {
			return errors.Join(err, lis.Close())
		}
		background.Go(func() { s.relay.run(relayCtx) })
	}
	healthCtx, stopHealth := context.WithCancel(ctx)
	background.Go(func() { s.watchHealth(healthCtx) })
	failed := make(chan error, 1)
	background.Go(func() { failed <- s.grpc.Serve(lis) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopHealth()
	s.drain(err == nil)
	stopRelay() // nobody reports any more
	background.Wait()
	s.receivers.Wait()
	s.statsNames.close()
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
