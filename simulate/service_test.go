package simulate_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/simulate"
	"github.com/coder/agentstatsd/store"
)

const coderdToken = "coderd's"

// service is the real service over a database in a file and a network in
// memory. It can be started again after it ended. It listens on one or more
// addresses: to an agent the servers on them are like replicas.
type service struct {
	t         *testing.T
	path      string
	addresses []string

	mu sync.Mutex
	// listeners by address, and connections to them.
	listeners map[string]*bufconn.Listener
	conns     map[string][]net.Conn

	store      *store.Store
	aggregator *aggregator.Aggregator
	pushes     *pushes
	broken     *atomic.Bool
	// drain ends the server on an address as a SIGTERM does.
	drain func(address string)
	stop  func()
}

func startService(t *testing.T, addresses ...string) *service {
	s := &service{
		t: t, pushes: &pushes{newest: map[agent.Instance]snapshot{}}, path: filepath.Join(t.TempDir(), "agentstatsd.db"),
		addresses: addresses, conns: map[string][]net.Conn{},
	}
	if len(addresses) == 0 {
		s.addresses = []string{"service:1"}
	}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// fragileStore refuses to write metadata once the service has crashed.
type fragileStore struct {
	*store.Store
	broken *atomic.Bool
}

func (s fragileStore) UpsertMetadata(ctx context.Context, rows []agent.Metadata) ([]agent.ID, []agent.StoredEpoch, error) {
	if s.broken.Load() {
		return nil, nil, errors.New("crashed")
	}
	return s.Store.UpsertMetadata(ctx, rows)
}

// pushes keeps the newest snapshot of each instance of coderd, over all lives of
// the service.
type pushes struct {
	mu     sync.Mutex
	newest map[agent.Instance]snapshot
}

type snapshot struct {
	agent.Push
	families map[string]*dto.MetricFamily
}

func (p *pushes) Push(_ context.Context, _ time.Time, push agent.Push) ([]agent.PushRefusal, error) {
	s := snapshot{push, map[string]*dto.MetricFamily{}}
	var refused []agent.PushRefusal
	for _, raw := range push.Families {
		family := &dto.MetricFamily{}
		if err := proto.Unmarshal(raw, family); err != nil {
			return nil, err
		}
		if reason := metrics.CheckPushedName(family.GetName()); reason != "" {
			refused = append(refused, agent.PushRefusal{Name: family.GetName(), Reason: string(reason)})
			continue
		}
		s.families[family.GetName()] = family
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.newest[push.Instance] = s
	return refused, nil
}

// all returns the newest snapshots by the name of their instance.
func (p *pushes) all() map[string]snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]snapshot{}
	for _, s := range p.newest {
		all[s.Replica] = s
	}
	return all
}

func (s *service) start() {
	t, log := s.t, slog.New(slog.DiscardHandler)
	reg := prometheus.NewRegistry()
	s.broken = new(atomic.Bool)
	var err error
	s.store, err = store.Open(context.Background(), store.Options{Path: s.path}, prometheus.NewRegistry(), log)
	require.NoError(t, err)
	memory, err := pubsub.NewMemory(reg)
	require.NoError(t, err)
	metadata := pubsub.NewMetadata(memory)
	s.aggregator, err = aggregator.New(aggregator.Options{}, reg)
	require.NoError(t, err)
	pending, err := batcher.New(fragileStore{s.store, s.broken}, metadata, batcher.Options{ShutdownTimeout: time.Second}, reg, log)
	require.NoError(t, err)
	agents, err := fleet.New(s.store, s.aggregator, pending, fleet.Options{}, reg, log)
	require.NoError(t, err)
	require.NoError(t, agents.Load(context.Background()))
	watched, err := reports.New(s.store, reports.Options{}, reg, log)
	require.NoError(t, err)
	require.NoError(t, watched.Load(context.Background()))
	workers, cancelWorkers := context.WithCancel(context.Background())
	var working sync.WaitGroup
	for _, work := range []func(context.Context) error{s.aggregator.Run, pending.Run, agents.Run, watched.Run} {
		working.Go(func() { _ = work(workers) })
	}
	listeners, drains := map[string]*bufconn.Listener{}, map[string]func(){}
	for _, address := range s.addresses {
		listener := bufconn.Listen(64 << 10)
		reg := prometheus.NewRegistry()
		api, err := grpcserver.New(agents, grpcserver.Options{Tokens: grpcserver.Tokens{Coderd: []grpcserver.Token{grpcserver.NewToken("default", coderdToken)}}, IdleTimeout: 15 * time.Second}, reg, log)
		require.NoError(t, err)
		_, err = agentapi.New(api,
			agentapi.Components{Fleet: agents, Stats: s.aggregator, Metadata: pending, Reports: watched},
			// Checks know by its ack that a report was taken in.
			agentapi.Options{ReportInterval: 5 * time.Second, AckDelay: 100 * time.Millisecond, FlushInterval: time.Millisecond}, reg, log)
		require.NoError(t, err)
		_, err = coderdapi.New(api,
			coderdapi.Components{Fleet: agents, Reader: s.store, Subscriber: metadata, Pushes: s.pushes, Reports: watched},
			coderdapi.Options{}, reg, log)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		var serving sync.WaitGroup
		serving.Go(func() { _ = api.Serve(ctx, listener) })
		listeners[address] = listener
		drains[address] = func() {
			cancel()
			serving.Wait()
		}
	}
	s.mu.Lock()
	s.listeners = listeners
	s.mu.Unlock()
	s.drain = func(address string) { drains[address]() }
	s.stop = func() {
		var draining sync.WaitGroup
		for _, drain := range drains {
			draining.Go(drain)
		}
		draining.Wait()
		cancelWorkers()
		working.Wait()
		require.NoError(t, s.store.Close())
		s.stop = func() {}
	}
}

// crash ends the service with what was pending lost.
func (s *service) crash() {
	s.broken.Store(true)
	for _, address := range s.addresses {
		s.kill(address)
	}
	s.stop()
}

// kill makes an address unreachable and breaks all connections to it.
func (s *service) kill(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.listeners[address].Close()
	for _, c := range s.conns[address] {
		_ = c.Close()
	}
}

// connections returns how many connections were made to an address.
func (s *service) connections(address string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns[address])
}

func (s *service) dial(ctx context.Context, address string) (net.Conn, error) {
	s.mu.Lock()
	listener := s.listeners[address]
	s.mu.Unlock()
	conn, err := listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.conns[address] = append(s.conns[address], conn)
	s.mu.Unlock()
	return conn, nil
}

// options of a simulation against the service.
func (s *service) options() simulate.Options {
	return simulate.Options{
		Targets: slices.Clone(s.addresses),
		Dial:    client.DialOptions{Plaintext: true, Token: coderdToken},
		Dialer:  s.dial,
	}
}
