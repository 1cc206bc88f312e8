// Package edgetest runs the gRPC server with all its services, over the real
// components and a database in a file. The tests of grpcserver, agentapi, coderdapi and
// adminapi use it.
package edgetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/sqlitetest"
	"github.com/coder/agentstatsd/internal/tap"
	"github.com/coder/agentstatsd/optiontable"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/pushed"
	"github.com/coder/agentstatsd/refusals"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/store"
)

// CoderdToken is coderd's.
const CoderdToken = "coderd's own token"

// PushToken is that of those who may only push.
const PushToken = "a token that only pushes"

// OperatorToken is that of those who may only read.
const OperatorToken = "a token that only reads"

// Service is the whole service but its command. It ends with its test.
type Service struct {
	requests atomic.Int64 // made by Request

	T        testing.TB
	Store    *Store
	Series   *aggregator.Aggregator
	Fleet    *fleet.Fleet
	Reports  *reports.Reports
	Refusals *refusals.Refusals
	// Pushes are those of coderd over gRPC. Pushed has those that a test pushes itself.
	Pushes       *Pushes
	Pushed       *pushed.Families
	Server       *grpcserver.Server
	AgentService *agentapi.Service
	Coderds      *coderdapi.Service
	Admin        *adminapi.Service
	Registry     *prometheus.Registry
	Log          *Log
	// Conn is a client's, without a token.
	Conn *grpc.ClientConn
	// Addr is that of the listener.
	Addr string
	// Dial opens a connection to the listener.
	Dial func(context.Context) (net.Conn, error)
	// Stop stops the server, then the workers. It is safe to repeat.
	Stop func()

	relayOnce sync.Once
	relay     *Relay // of a test over it
}

// Settings are what tests of a Service change.
type Settings struct {
	Fleet   fleet.Options
	Server  grpcserver.Options
	Agents  agentapi.Options
	Coderd  coderdapi.Options
	Batcher batcher.Options
	// Series has no times, which are 30 s and 2 min.
	Series aggregator.Options
	// ChangeAgents, ChangeCoderd and ChangeAdmin put other components in place.
	ChangeAgents func(*agentapi.Components)
	ChangeCoderd func(*coderdapi.Components)
	ChangeAdmin  func(*adminapi.Components)
	// Join makes the fleet one of several replicas; nil: it is alone.
	Join func(*fleet.Fleet)
	// LogLevel is the least level of Log; zero: info.
	LogLevel slog.Level
	// Down: the database is down at the start.
	Down bool
	// TCP: listen on loopback rather than in memory.
	TCP bool
	// Dial has options of Conn.
	Dial []grpc.DialOption
}

// FixedWindows do not grow with what the other streams of the connection read.
var FixedWindows = []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(16 << 20)}

// Start starts a Service.
func Start(t testing.TB, set Settings) *Service {
	t.Helper()
	s := &Service{T: t, Pushes: &Pushes{}, Registry: prometheus.NewPedanticRegistry(), Log: &Log{}}
	log := slog.New(slog.NewTextHandler(s.Log, &slog.HandlerOptions{Level: set.LogLevel}))
	path := filepath.Join(t.TempDir(), "test.db")
	require.NoError(t, sqlitetest.Create(path))
	db, err := store.Open(t.Context(), store.Options{Path: path}, prometheus.NewRegistry(), log)
	require.NoError(t, err)
	s.Store = &Store{Store: db, down: set.Down}
	memory, err := pubsub.NewMemory(s.Registry)
	require.NoError(t, err)
	published := pubsub.NewMetadata(memory)
	series := set.Series
	series.ReportInterval, series.SeriesTTL = 30*time.Second, 2*time.Minute
	series.MaxSeries = cmp.Or(series.MaxSeries, 100_000)
	series.Expired = func(id agent.ID, n int) { s.Refusals.SeriesExpired(id, n, series.SeriesTTL) }
	s.Series, err = aggregator.New(series, s.Registry)
	require.NoError(t, err)
	s.Pushed, err = pushed.New(s.Store, s.Series, pushed.Options{}, s.Registry, log)
	require.NoError(t, err)
	if !set.Down {
		require.NoError(t, s.Pushed.Load(t.Context()))
	}
	if set.Batcher.BatchSize == 0 {
		set.Batcher = batcher.Options{BatchSize: 500, FlushInterval: 5 * time.Second, MaxPending: 10_000, TouchInterval: time.Minute}
	}
	pending, err := batcher.New(s.Store, published, set.Batcher, s.Registry, log)
	require.NoError(t, err)
	s.Fleet, err = fleet.New(s.Store, s.Series, pending, set.Fleet, s.Registry, log)
	require.NoError(t, err)
	if set.Join != nil {
		set.Join(s.Fleet)
	}
	if !set.Down {
		require.NoError(t, s.Fleet.Load(t.Context()))
	}
	s.Reports, err = reports.New(s.Store, reports.Options{MaxSubscriptions: 3}, s.Registry, log)
	require.NoError(t, err)
	if !set.Down {
		require.NoError(t, s.Reports.Load(t.Context()))
	}
	if set.Server.CoderdClientSAN == "" {
		set.Server.Tokens = grpcserver.Tokens{
			Coderd:   []grpcserver.Token{grpcserver.NewToken("default", CoderdToken)},
			Push:     []grpcserver.Token{grpcserver.NewToken("default", PushToken)},
			Operator: []grpcserver.Token{grpcserver.NewToken("default", OperatorToken)},
		}
	}
	set.Server.Reflection = true
	if set.Server.IdleTimeout == 0 {
		set.Server.IdleTimeout = 1000 * time.Hour
	}
	s.Server, err = grpcserver.New(s.Fleet, set.Server, s.Registry, log)
	require.NoError(t, err)
	set.Agents.Limits.Series = 1000
	s.Refusals, err = refusals.New(s.Fleet, refusals.Options{}, s.Registry, log)
	require.NoError(t, err)
	taps, err := tap.New(s.Registry)
	require.NoError(t, err)
	agents := agentapi.Components{Fleet: s.Fleet, Stats: s.Series, Metadata: pending, Reports: s.Reports, Refusals: s.Refusals, Taps: taps}
	if set.ChangeAgents != nil {
		set.ChangeAgents(&agents)
	}
	s.AgentService, err = agentapi.New(s.Server, agents, set.Agents, s.Registry, log)
	require.NoError(t, err)
	coderd := coderdapi.Components{Fleet: s.Fleet, Reader: s.Store, Subscriber: published, Pushes: s.Pushes, Reports: s.Reports, Tasks: s.Store}
	if set.ChangeCoderd != nil {
		set.ChangeCoderd(&coderd)
	}
	s.Coderds, err = coderdapi.New(s.Server, coderd, set.Coderd, s.Registry, log)
	require.NoError(t, err)
	admin := adminapi.Components{
		Fleet: s.Fleet, Series: s.Series, Costs: s.Series, Metadata: s.Store, Pending: pending, Taps: taps, Refusals: s.Refusals, Pushes: s.Pushed, Metrics: s.Registry,
		Self:    func() adminapi.Self { return adminapi.Self{} },
		Config:  func() ([]optiontable.Row, uint64) { return nil, 0 },
		LogTail: func() []byte { return []byte("a line\n") },
	}
	if set.ChangeAdmin != nil {
		set.ChangeAdmin(&admin)
	}
	s.Admin, err = adminapi.New(s.Server, admin, s.Registry, log)
	require.NoError(t, err)

	var lis net.Listener = bufconn.Listen(1 << 20)
	if set.TCP {
		lis, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
	}
	s.Addr = lis.Addr().String()
	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(t.Context()))
	workCtx, stopWorking := context.WithCancel(context.WithoutCancel(t.Context()))
	var serving, working sync.WaitGroup
	serving.Go(func() { require.NoError(t, s.Server.Serve(serveCtx, lis)) })
	for _, run := range []func(context.Context) error{s.Fleet.Run, pending.Run, s.Series.Run, s.Reports.Run, s.Refusals.Run, s.Pushed.Run} {
		working.Go(func() { require.NoError(t, run(workCtx)) })
	}
	s.Stop = sync.OnceFunc(func() {
		stopServing()
		serving.Wait()
		stopWorking()
		working.Wait()
	})
	s.Dial = func(ctx context.Context) (net.Conn, error) {
		if memory, ok := lis.(*bufconn.Listener); ok {
			return memory.DialContext(ctx)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
	}
	dial := append([]grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.Dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// gRPC gives a connection 20 s, which busy machines may need.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 2 * time.Minute}),
	}, set.Dial...)
	s.Conn, err = grpc.NewClient("passthrough:///test", dial...)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Conn.Close())
		s.Stop()
		require.NoError(t, db.Close())
	})
	return s
}

// Agents is a client of agents on Conn.
func (s *Service) Agents() pb.AgentServiceClient { return pb.NewAgentServiceClient(s.Conn) }

// Coderd is a client of coderd on Conn.
func (s *Service) Coderd() pb.CoderdServiceClient { return pb.NewCoderdServiceClient(s.Conn) }

// As adds a credential, and pairs of keys and values, to the metadata of calls.
func As(ctx context.Context, token string, more ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, append([]string{"authorization", "Bearer " + token}, more...)...)
}

// Operators is a client of operators on Conn.
func (s *Service) Operators() pb.AdminServiceClient { return pb.NewAdminServiceClient(s.Conn) }

// AsOperator is a context of the test with the credential of an operator.
func (s *Service) AsOperator() context.Context { return As(s.T.Context(), OperatorToken) }

// AsCoderd is a context of the test with the credential of coderd.
func (s *Service) AsCoderd() context.Context { return As(s.T.Context(), CoderdToken) }

// Register registers agents by number.
func (s *Service) Register(numbers ...int) {
	s.T.Helper()
	req := &pb.RegisterAgentsRequest{}
	for _, n := range numbers {
		req.Agents = append(req.Agents, Registration(n))
	}
	resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
	require.NoError(s.T, err)
	require.Empty(s.T, resp.GetRefused())
}

// RequireAgents fails unless these agents are registered, in the order of their ids.
func (s *Service) RequireAgents(numbers ...int) {
	s.T.Helper()
	resp, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{PageSize: 1000})
	require.NoError(s.T, err)
	var ids [][]byte
	for _, a := range resp.GetAgents() {
		ids = append(ids, a.GetId())
	}
	require.Equal(s.T, IDsBytes(numbers...), ids)
}

// Exposition returns the lines of the scrape that are no comments and contain text.
func (s *Service) Exposition(containing string) []string {
	s.T.Helper()
	var b bytes.Buffer
	require.NoError(s.T, s.Series.WriteText(&b))
	var lines []string
	for line := range bytes.Lines(b.Bytes()) {
		if line[0] != '#' && bytes.Contains(line, []byte(containing)) {
			lines = append(lines, strings.Join(strings.Fields(string(line)), " "))
		}
	}
	return lines
}

// StoredMetadata returns what the database has of agent n, as key=value.
func (s *Service) StoredMetadata(n int) []string {
	s.T.Helper()
	rows, _, err := s.Store.MetadataWithin(s.T.Context(), []agent.ID{ID(n)}, 1<<30)
	require.NoError(s.T, err)
	var out []string
	for _, r := range rows {
		out = append(out, r.Key+"="+r.Value)
	}
	return out
}

// Counter returns the value of a family's counter or gauge of which a label has the value.
func (s *Service) Counter(name, label string) float64 {
	s.T.Helper()
	families, err := s.Registry.Gather()
	require.NoError(s.T, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == label })) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	s.T.Fatalf("no %s{%s}", name, label)
	return 0
}

// StoreMuch registers so many agents and has each report 16 KB of metadata. It
// returns their numbers.
func (s *Service) StoreMuch(agents int) (numbers []int) {
	for n := 1; n <= agents; n++ {
		numbers = append(numbers, n)
	}
	s.Register(numbers...)
	var pairs []string
	for key := range 8 {
		pairs = append(pairs, fmt.Sprint("key", key), strings.Repeat("x", 2000))
	}
	for _, n := range numbers {
		s.Request(n, Metadata(pairs...))
	}
	return numbers
}
