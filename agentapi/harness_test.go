package agentapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/pubsub"
	"github.com/coder/agentstatsd/reports"
	"github.com/coder/agentstatsd/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const coderdToken = "coderd's own token"

// switchStore is the real store with a switch that takes it down.
type switchStore struct {
	*store.Store
	mu   sync.Mutex
	down bool
}

var errDown = fmt.Errorf("disk I/O error at /var/lib/secret")

func (s *switchStore) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *switchStore) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errDown
	}
	return nil
}

func (s *switchStore) UpsertMetadata(ctx context.Context, rows []agent.Metadata) ([]agent.ID, []agent.StoredEpoch, error) {
	if err := s.err(); err != nil {
		return nil, nil, err
	}
	return s.Store.UpsertMetadata(ctx, rows)
}

func (s *switchStore) MetadataWithin(ctx context.Context, ids []agent.ID, limit int) ([]agent.Metadata, []agent.ID, error) {
	if err := s.err(); err != nil {
		return nil, nil, err
	}
	return s.Store.MetadataWithin(ctx, ids, limit)
}

func (s *switchStore) ApplyChange(ctx context.Context, basis int64, c agent.Change) (int64, error) {
	if err := s.err(); err != nil {
		return 0, err
	}
	return s.Store.ApplyChange(ctx, basis, c)
}

func (s *switchStore) SaveStates(ctx context.Context, states []agent.State) ([]agent.StoredEpoch, error) {
	if err := s.err(); err != nil {
		return nil, err
	}
	return s.Store.SaveStates(ctx, states)
}

func (s *switchStore) Registrations(ctx context.Context, since int64) (agent.Registrations, error) {
	if err := s.err(); err != nil {
		return agent.Registrations{}, err
	}
	return s.Store.Registrations(ctx, since)
}

// service is the whole service but its command, over bufconn.
type service struct {
	t             testing.TB
	store         *switchStore
	series        *aggregator.Aggregator
	fleet         *fleet.Fleet
	news          *pubsub.Metadata
	registry      *prometheus.Registry
	pushes        *pushes
	reports       *reports.Reports
	server        *grpcserver.Server
	agentService  *agentapi.Service
	coderdService *coderdapi.Service
	conn          *grpc.ClientConn
	addr          string // of the listener
	dialConn      func(context.Context) (net.Conn, error)
	log           *lockedBuffer
	stop          func() // stops the server, then the workers; once
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type settings struct {
	fleet   fleet.Options
	server  grpcserver.Options
	agents  agentapi.Options
	coderd  coderdapi.Options
	batcher batcher.Options
	// changeAgents and changeCoderd put other components in place.
	changeAgents func(*agentapi.Components)
	changeCoderd func(*coderdapi.Components)
	down         bool // the database, at start
	tcp          bool // listen on loopback rather than in memory
	dial         []grpc.DialOption
}

func start(t testing.TB, set settings) *service {
	t.Helper()
	s := &service{t: t, pushes: &pushes{}, registry: prometheus.NewPedanticRegistry(), log: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	db, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "test.db")}, prometheus.NewRegistry(), log)
	require.NoError(t, err)
	s.store = &switchStore{Store: db, down: set.down}
	memory, err := pubsub.NewMemory(s.registry)
	require.NoError(t, err)
	s.news = pubsub.NewMetadata(memory)
	s.series, err = aggregator.New(aggregator.Options{
		ReportInterval: 30 * time.Second, SeriesTTL: 2 * time.Minute, MaxSeries: 100_000, MaxSeriesPerAgent: 1000,
	}, s.registry)
	require.NoError(t, err)
	if set.batcher.BatchSize == 0 {
		set.batcher = batcher.Options{BatchSize: 500, FlushInterval: 5 * time.Second, MaxPending: 10_000}
	}
	pending, err := batcher.New(s.store, s.news, set.batcher, s.registry, log)
	require.NoError(t, err)
	s.fleet, err = fleet.New(s.store, s.series, pending, set.fleet, s.registry, log)
	require.NoError(t, err)
	if !set.down {
		require.NoError(t, s.fleet.Load(t.Context()))
	}
	s.reports, err = reports.New(s.store, reports.Options{MaxSubscriptions: 3}, s.registry, log)
	require.NoError(t, err)
	if !set.down {
		require.NoError(t, s.reports.Load(t.Context()))
	}
	if set.server.CoderdClientSAN == "" {
		set.server.CoderdTokenHash = sha256.Sum256([]byte(coderdToken))
	}
	set.server.Reflection = true
	if set.server.IdleTimeout == 0 {
		set.server.IdleTimeout = 1000 * time.Hour
	}
	s.server, err = grpcserver.New(s.fleet, set.server, s.registry, log)
	require.NoError(t, err)
	set.agents.Limits.Series = 1000
	agents := agentapi.Components{Fleet: s.fleet, Stats: s.series, Metadata: pending, Reports: s.reports}
	if set.changeAgents != nil {
		set.changeAgents(&agents)
	}
	s.agentService, err = agentapi.New(s.server, agents, set.agents, s.registry, log)
	require.NoError(t, err)
	coderd := coderdapi.Components{Fleet: s.fleet, Reader: s.store, News: s.news, Pushes: s.pushes, Reports: s.reports}
	if set.changeCoderd != nil {
		set.changeCoderd(&coderd)
	}
	s.coderdService, err = coderdapi.New(s.server, coderd, set.coderd, s.registry, log)
	require.NoError(t, err)

	var lis net.Listener = bufconn.Listen(1 << 20)
	if set.tcp {
		lis, err = net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
	}
	s.addr = lis.Addr().String()
	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(t.Context()))
	workCtx, stopWorking := context.WithCancel(context.WithoutCancel(t.Context()))
	var serving, working sync.WaitGroup
	serving.Go(func() { require.NoError(t, s.server.Serve(serveCtx, lis)) })
	for _, run := range []func(context.Context) error{s.fleet.Run, pending.Run, s.series.Run, s.reports.Run} {
		working.Go(func() { require.NoError(t, run(workCtx)) })
	}
	s.stop = sync.OnceFunc(func() {
		stopServing()
		serving.Wait()
		stopWorking()
		working.Wait()
	})
	s.dialConn = func(ctx context.Context) (net.Conn, error) {
		if memory, ok := lis.(*bufconn.Listener); ok {
			return memory.DialContext(ctx)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	}
	dial := append([]grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.dialConn(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}, set.dial...)
	s.conn, err = grpc.NewClient("passthrough:///test", dial...)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.conn.Close())
		s.stop()
		require.NoError(t, db.Close())
	})
	return s
}

func (s *service) agents() pb.AgentServiceClient  { return pb.NewAgentServiceClient(s.conn) }
func (s *service) coderd() pb.CoderdServiceClient { return pb.NewCoderdServiceClient(s.conn) }

func as(ctx context.Context, token string, more ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, append([]string{"authorization", "Bearer " + token}, more...)...)
}

func (s *service) asCoderd() context.Context { return as(s.t.Context(), coderdToken) }

// nid is the nth id.
func nid(n int) uuid.UUID {
	var id uuid.UUID
	id[0], id[13], id[14], id[15] = 1, byte(n>>16), byte(n>>8), byte(n)
	return id
}

func bid(n int) []byte { id := nid(n); return id[:] }

func token(n int) string { return fmt.Sprintf("token of agent %d", n) }

func hashOf(token string) []byte {
	hash := sha256.Sum256([]byte(token))
	return hash[:]
}

// day is past, also where time begins in 2000: within testing/synctest.
var day = time.Date(1999, 12, 31, 12, 0, 0, 0, time.UTC)

// registration is agent n in its own workspace.
func registration(n int) *pb.AgentRegistration {
	return &pb.AgentRegistration{
		Id:                bid(n),
		Name:              "main",
		CreatedAt:         timestamppb.New(day),
		ConnectionTimeout: durationpb.New(time.Minute),
		TokenSha256:       hashOf(token(n)),
		Workspace:         workspace(n),
		Apps:              []*pb.App{{Id: bid(50_000 + n), Slug: "code", DisplayName: "code", Health: pb.AppHealth_APP_HEALTH_INITIALIZING}},
	}
}

func workspace(n int) *pb.Workspace {
	return &pb.Workspace{
		Id: bid(10_000 + n), Name: fmt.Sprint("ws", n), OwnerId: bid(20_000), OwnerUsername: "ada",
		Template:         &pb.Template{Id: bid(30_000), Name: "docker", Version: "v1"},
		OrganizationName: "acme",
		Build:            &pb.Build{Id: bid(40_000 + n), CreatedAt: timestamppb.New(day), Transition: pb.Build_TRANSITION_START},
	}
}

func rebuilt(r *pb.AgentRegistration, id int) *pb.AgentRegistration {
	r.Id = bid(id)
	r.TokenSha256 = hashOf(token(id))
	r.CreatedAt = timestamppb.New(day.Add(time.Hour))
	r.Workspace.Build.Id = bid(41_000)
	r.Workspace.Build.CreatedAt = timestamppb.New(day.Add(time.Hour))
	return r
}

// register registers agents by number.
func (s *service) register(numbers ...int) {
	s.t.Helper()
	req := &pb.RegisterAgentsRequest{}
	for _, n := range numbers {
		req.Agents = append(req.Agents, registration(n))
	}
	_, err := s.coderd().RegisterAgents(s.asCoderd(), req)
	require.NoError(s.t, err)
}

// stream is an agent's stream after its hello.
type stream struct {
	pb.AgentService_ConnectClient
	t        testing.TB
	settings *pb.Settings
	sequence int64
}

func hello(instance byte, session int64) *pb.ConnectRequest {
	id := make([]byte, 16)
	id[0] = instance
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_Hello{Hello: &pb.Hello{InstanceId: id, ProtocolVersion: 1, Session: session}}}
}

// open opens a stream without a hello.
func (s *service) open(ctx context.Context) *stream {
	s.t.Helper()
	c, err := s.agents().Connect(ctx)
	require.NoError(s.t, err)
	return &stream{AgentService_ConnectClient: c, t: s.t}
}

// connect opens a session of agent n.
func (s *service) connect(n int, instance byte, session int64) *stream {
	s.t.Helper()
	return s.open(as(s.t.Context(), token(n))).greet(instance, session)
}

func (c *stream) greet(instance byte, session int64) *stream {
	c.t.Helper()
	require.NoError(c.t, c.Send(hello(instance, session)))
	c.settings = c.recv().GetSettings()
	require.NotNil(c.t, c.settings.GetResume())
	c.sequence = c.settings.GetResume().GetReceivedSequence()
	return c
}

// request has agent n connect, send one request and disconnect. It returns once
// the request was taken in.
func (s *service) request(n int, req *pb.ConnectRequest) {
	s.t.Helper()
	c := s.connect(n, byte(n), 0)
	c.send(req)
	require.NoError(s.t, c.CloseSend())
	c.requireEnd(codes.OK, "")
}

func (c *stream) recv() *pb.ConnectResponse {
	c.t.Helper()
	m, err := c.Recv()
	require.NoError(c.t, err)
	return m
}

// ack receives the next message, which is an ack.
func (c *stream) ack() (received, durable int64) {
	c.t.Helper()
	m := c.recv()
	require.NotNil(c.t, m.GetAck(), "got %v", m)
	return m.GetAck().GetReceivedSequence(), m.GetAck().GetDurableSequence()
}

// requireAck receives acks until both sequences are reached.
func (c *stream) requireAck(received, durable int64) {
	c.t.Helper()
	for {
		r, d := c.ack()
		require.LessOrEqual(c.t, r, received)
		require.LessOrEqual(c.t, d, durable)
		if r == received && d == durable {
			return
		}
	}
}

// requireEnd receives until the end, which has the code and the text.
func (c *stream) requireEnd(code codes.Code, text string) {
	c.t.Helper()
	for {
		_, err := c.Recv()
		if err == nil {
			continue
		}
		if code == codes.OK {
			require.Equal(c.t, io.EOF, err)
			return
		}
		require.Equal(c.t, code, status.Code(err), "%v", err)
		require.Equal(c.t, text, status.Convert(err).Message())
		return
	}
}

// send sends a message with the next sequence and returns that.
func (c *stream) send(req *pb.ConnectRequest) int64 {
	c.t.Helper()
	c.sequence++
	req.Sequence = c.sequence
	require.NoError(c.t, c.Send(req))
	return req.Sequence
}

func stats(s *pb.Stats) *pb.ConnectRequest {
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_Stats{Stats: s}}
}

func entries(pairs ...string) []*pb.Metadata {
	var m []*pb.Metadata
	for i := 0; i < len(pairs); i += 2 {
		m = append(m, &pb.Metadata{Key: pairs[i], Result: &pb.Metadata_Result{Value: pairs[i+1]}})
	}
	return m
}

func meta(pairs ...string) *pb.ConnectRequest {
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_Metadata{Metadata: &pb.MetadataReport{Metadata: entries(pairs...)}}}
}

func lifecycle(state pb.Lifecycle_State) *pb.ConnectRequest {
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_Lifecycle{Lifecycle: &pb.Lifecycle{State: state}}}
}

func goodbye() *pb.ConnectRequest {
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_Goodbye{Goodbye: &pb.Goodbye{}}}
}

func gauge(name string, value float64) *pb.Stats {
	return &pb.Stats{Metrics: []*pb.Stats_Metric{{Name: name, Type: pb.Stats_Metric_TYPE_GAUGE, Value: value}}}
}

// exposition returns the lines of the scrape that are no comments and hold text.
func (s *service) exposition(containing string) []string {
	s.t.Helper()
	var b bytes.Buffer
	require.NoError(s.t, s.series.WriteText(&b))
	var lines []string
	for line := range bytes.Lines(b.Bytes()) {
		if line[0] != '#' && bytes.Contains(line, []byte(containing)) {
			lines = append(lines, strings.Join(strings.Fields(string(line)), " "))
		}
	}
	return lines
}

// stored returns what the database has of agent n, as key=value.
func (s *service) stored(n int) []string {
	s.t.Helper()
	rows, _, err := s.store.MetadataWithin(s.t.Context(), []agent.ID{nid(n)}, 1<<30)
	require.NoError(s.t, err)
	var out []string
	for _, r := range rows {
		out = append(out, r.Key+"="+r.Value)
	}
	return out
}

// counter returns the value of a family's counter or gauge with the label value.
func (s *service) counter(name, label string) float64 {
	s.t.Helper()
	families, err := s.registry.Gather()
	require.NoError(s.t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || len(m.GetLabel()) > 0 && m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	s.t.Fatalf("no %s{%s}", name, label)
	return 0
}

func codeOf(err error) codes.Code { return status.Code(err) }

// requireCode checks the status of a call.
func requireCode(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	require.Equal(t, code, status.Code(err), "%v", err)
	require.Equal(t, text, status.Convert(err).Message())
}
