package clienttest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/sqlitetest"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/store"
)

const coderdToken = "coderd's token"

// service is the real service over a database in a file and a network in
// memory. It can be started again after it was stopped.
type service struct {
	network
	dir        string
	aggregator *aggregator.Aggregator
	fleet      *fleet.Fleet
	registry   *prometheus.Registry
	pushed     *pushed.Families
	grouping   []string // of agents' series
	// flushInterval of metadata; 0: a short one.
	flushInterval time.Duration
	stopped       func()
}

// startService panics on errors, as examples have no testing.T.
func startService(grouping ...string) *service {
	dir, err := os.MkdirTemp("", "agentstatsd-client-")
	must(err)
	s := &service{dir: dir, grouping: grouping}
	must(sqlitetest.Create(s.database()))
	s.start()
	return s
}

func (s *service) database() string { return filepath.Join(s.dir, "agentstatsd.db") }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (s *service) start() {
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	database, err := store.Open(context.Background(), store.Options{Path: s.database()}, prometheus.NewRegistry(), log)
	must(err)
	memory, err := pubsub.NewMemory(reg)
	must(err)
	notifications := pubsub.NewMetadata(memory)
	s.aggregator, err = aggregator.New(aggregator.Options{GroupBy: s.grouping}, reg)
	must(err)
	pending, err := batcher.New(database, notifications, batcher.Options{FlushInterval: cmp.Or(s.flushInterval, 20*time.Millisecond)}, reg, log)
	must(err)
	agents, err := fleet.New(database, s.aggregator, pending, fleet.Options{WriteInterval: time.Millisecond}, reg, log)
	must(err)
	must(agents.Load(context.Background()))
	s.fleet, s.registry = agents, reg
	s.pushed, err = pushed.New(database, s.aggregator, pushed.Options{}, reg, log)
	must(err)
	must(s.pushed.Load(context.Background()))
	watched, err := reports.New(database, reports.Options{}, reg, log)
	must(err)
	must(watched.Load(context.Background()))
	api, err := grpcserver.New(agents, grpcserver.Options{CoderdTokenHash: sha256.Sum256([]byte(coderdToken)), DrainTimeout: 50 * time.Millisecond}, reg, log)
	must(err)
	_, err = agentapi.New(api, agentapi.Components{Fleet: agents, Stats: s.aggregator, Metadata: pending, Reports: watched}, agentapi.Options{}, reg, log)
	must(err)
	_, err = coderdapi.New(api, coderdapi.Components{Fleet: agents, Reader: database, Subscriber: notifications, Pushes: s.pushed, Reports: watched}, coderdapi.Options{}, reg, log)
	must(err)
	s.mu.Lock()
	s.listener = bufconn.Listen(64 << 10)
	listener := s.listener
	s.mu.Unlock()

	ctx, cancel := context.WithCancel(context.Background())
	workers, cancelWorkers := context.WithCancel(context.Background())
	var serving, working sync.WaitGroup
	serving.Go(func() { must(api.Serve(ctx, listener)) })
	for _, work := range []func(context.Context) error{s.aggregator.Run, pending.Run, agents.Run, s.pushed.Run, watched.Run} {
		working.Go(func() { must(work(workers)) })
	}
	s.stopped = func() {
		cancel()
		serving.Wait()
		cancelWorkers()
		working.Wait()
		must(database.Close())
	}
}

// close ends the service and removes its database.
func (s *service) close() {
	s.stopped()
	must(os.RemoveAll(s.dir))
}

// conn returns a connection with a token, as client.Dial makes it.
func (s *service) conn(token string) *grpc.ClientConn {
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, Token: token}, grpc.WithContextDialer(s.dial))
	must(err)
	return conn
}
