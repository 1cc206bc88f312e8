package clienttest

import (
	"cmp"
	"context"
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
	"github.com/coder/agentstatsd/internal/memstore"
	"github.com/coder/agentstatsd/internal/sqlitetest"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/replica"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/store"
)

const coderdToken = "coderd's token"

// service is the real service over a database in a file and a network in
// memory. It can be started again after it was stopped.
type service struct {
	network
	dir        string
	shared     *shared // with other replicas; nil: there are none
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
	must(sqlitetest.Create(s.file()))
	s.start()
	return s
}

// shared is what replicas of a service share.
type shared struct {
	database *memstore.Database
	bus      *pubsub.Memory
}

// startReplicas starts replicas of a service, whose database is in memory.
func startReplicas(n int, grouping ...string) []*service {
	bus, err := pubsub.NewMemory(prometheus.NewRegistry())
	must(err)
	of := &shared{memstore.New(), bus}
	replicas := make([]*service, n)
	for i := range replicas {
		replicas[i] = &service{shared: of, grouping: grouping}
		replicas[i].start()
	}
	return replicas
}

// database is what the parts of a service need of it.
type database interface {
	fleet.Store
	batcher.Store
	pushed.Store
	reports.Store
	replica.Store
	coderdapi.MetadataReader
}

// open returns the database, the pubsub and what closes them.
func (s *service) open(reg prometheus.Registerer, log *slog.Logger) (database, *pubsub.Memory, func() error) {
	if s.shared != nil {
		return s.shared.database.Open(memstore.Options{}), s.shared.bus, func() error { return nil }
	}
	file, err := store.Open(context.Background(), store.Options{Path: s.file()}, prometheus.NewRegistry(), log)
	must(err)
	memory, err := pubsub.NewMemory(reg)
	must(err)
	return file, memory, file.Close
}

func (s *service) file() string { return filepath.Join(s.dir, "agentstatsd.db") }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (s *service) start() {
	log, reg := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	database, bus, closeDatabase := s.open(reg, log)
	notifications := pubsub.NewMetadata(bus)
	var err error
	s.aggregator, err = aggregator.New(aggregator.Options{GroupBy: s.grouping}, reg)
	must(err)
	pending, err := batcher.New(database, notifications, batcher.Options{
		FlushInterval: cmp.Or(s.flushInterval, 20*time.Millisecond), TouchInterval: time.Minute,
	}, reg, log)
	must(err)
	agents, err := fleet.New(database, s.aggregator, pending, fleet.Options{WriteInterval: time.Millisecond}, reg, log)
	must(err)
	works := []func(context.Context) error{s.aggregator.Run, pending.Run, agents.Run}
	pushing, watching := pushed.Options{}, reports.Options{}
	if s.shared != nil {
		replicas, err := replica.New(database, bus, replica.Options{}, reg, log)
		must(err)
		agents.Join(replicas, bus)
		pushing.Lease, pushing.Notifier = replicas, bus
		watching.ID, watching.Shared = replicas.Self(), true
		works = append(works, replicas.Run)
	}
	must(agents.Load(context.Background()))
	s.fleet, s.registry = agents, reg
	s.pushed, err = pushed.New(database, s.aggregator, pushing, reg, log)
	must(err)
	must(s.pushed.Load(context.Background()))
	watched, err := reports.New(database, watching, reg, log)
	must(err)
	must(watched.Load(context.Background()))
	api, err := grpcserver.New(agents, grpcserver.Options{Tokens: grpcserver.Tokens{Coderd: []grpcserver.Token{grpcserver.NewToken("default", coderdToken)}}, DrainTimeout: 50 * time.Millisecond}, reg, log)
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
	for _, work := range append(works, s.pushed.Run, watched.Run) {
		working.Go(func() { must(work(workers)) })
	}
	s.stopped = func() {
		cancel()
		serving.Wait()
		cancelWorkers()
		working.Wait()
		must(closeDatabase())
	}
}

// close ends the service and removes its database.
func (s *service) close() {
	s.stopped()
	if s.dir != "" {
		must(os.RemoveAll(s.dir))
	}
}

// conn returns a connection with a token, as client.Dial makes it.
func (s *service) conn(token string) *grpc.ClientConn {
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, Token: token}, grpc.WithContextDialer(s.dial))
	must(err)
	return conn
}
