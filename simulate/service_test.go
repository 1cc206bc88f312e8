package simulate_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/simulate"
	"github.com/coder/agentstatsd/store"
)

const coderdToken = "coderd's"

// service is the real service over a database in a file and a network in
// memory. It can be started again after it ended.
type service struct {
	t    *testing.T
	path string

	mu       sync.Mutex
	listener *bufconn.Listener
	conns    []net.Conn

	store      *store.Store
	aggregator *aggregator.Aggregator
	pushes     *pushes
	broken     *atomic.Bool
	stop       func()
}

func startService(t *testing.T) *service {
	s := &service{t: t, pushes: &pushes{newest: map[agent.Instance]snapshot{}}, path: filepath.Join(t.TempDir(), "agentstatsd.db")}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

// fragileStore refuses to write metadata once the service has crashed.
type fragileStore struct {
	*store.Store
	broken *atomic.Bool
}

func (s fragileStore) UpsertMetadata(ctx context.Context, rows []agent.Metadata) (int, error) {
	if s.broken.Load() {
		return 0, errors.New("crashed")
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
	s.store, err = store.Open(context.Background(), store.Options{Path: s.path}, log)
	require.NoError(t, err)
	memory, err := pubsub.NewMemory(reg)
	require.NoError(t, err)
	news := pubsub.NewMetadata(memory)
	s.aggregator, err = aggregator.New(aggregator.Options{}, reg)
	require.NoError(t, err)
	pending, err := batcher.New(fragileStore{s.store, s.broken}, news, batcher.Options{ShutdownTimeout: time.Second}, reg, log)
	require.NoError(t, err)
	agents, err := fleet.New(s.store, s.aggregator, pending, fleet.Options{}, reg, log)
	require.NoError(t, err)
	require.NoError(t, agents.Load(context.Background()))
	api, err := agentapi.NewServer(
		agentapi.Components{Fleet: agents, Stats: s.aggregator, Metadata: pending, Reader: s.store, News: news, Pushes: s.pushes},
		agentapi.Options{CoderdTokenHash: sha256.Sum256([]byte(coderdToken)), ReportInterval: 5 * time.Second},
		reg, log,
	)
	require.NoError(t, err)
	listener := bufconn.Listen(64 << 10)
	s.mu.Lock()
	s.listener = listener
	s.mu.Unlock()

	ctx, cancel := context.WithCancel(context.Background())
	workers, cancelWorkers := context.WithCancel(context.Background())
	var serving, working sync.WaitGroup
	serving.Go(func() { _ = api.Serve(ctx, listener) })
	for _, work := range []func(context.Context) error{s.aggregator.Run, pending.Run, agents.Run} {
		working.Go(func() { _ = work(workers) })
	}
	s.stop = func() {
		cancel()
		serving.Wait()
		cancelWorkers()
		working.Wait()
		require.NoError(t, s.store.Close())
		s.stop = func() {}
	}
}

// crash ends the service with what was pending lost.
func (s *service) crash() {
	s.broken.Store(true)
	s.mu.Lock()
	_ = s.listener.Close()
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.stop()
}

func (s *service) dial(ctx context.Context, _ string) (net.Conn, error) {
	s.mu.Lock()
	listener := s.listener
	s.mu.Unlock()
	conn, err := listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.conns = append(s.conns, conn)
	s.mu.Unlock()
	return conn, nil
}

// options of a simulation against the service.
func (s *service) options() simulate.Options {
	return simulate.Options{
		Target: "passthrough:///service",
		Dial:   client.DialOptions{Plaintext: true, Token: coderdToken},
		GRPC:   []grpc.DialOption{grpc.WithContextDialer(s.dial)},
	}
}
