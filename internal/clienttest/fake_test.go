package clienttest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// fault is a point at which the fake service breaks a stream.
type fault int

const (
	noFault fault = iota
	beforeTaking
	beforeAck
	afterAck
)

// fakeSums is what replicas share: the sums of reports that somebody watches, and the
// written sequence of each instance.
type fakeSums struct {
	mu      sync.Mutex
	written map[string]int64
	sums    fakeCounts
	// most is the highest number of reports that were written at once.
	most int
	// sent are the counts of each report, and counted the reports that were added.
	sent    map[string]map[int64]fakeCounts
	changed []int64
}

type fakeCounts struct {
	rxPackets, rxBytes, txPackets, txBytes int64
}

func countsOf(s *agentstatsv1.Stats) fakeCounts {
	return fakeCounts{s.GetRxPackets(), s.GetRxBytes(), s.GetTxPackets(), s.GetTxBytes()}
}

func (c *fakeCounts) add(d fakeCounts) {
	c.rxPackets += d.rxPackets
	c.rxBytes += d.rxBytes
	c.txPackets += d.txPackets
	c.txBytes += d.txBytes
}

// see checks that a report is sent again as it was.
func (f *fakeSums) see(instance string, sequence int64, c fakeCounts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent == nil {
		f.sent, f.written = map[string]map[int64]fakeCounts{}, map[string]int64{}
	}
	if f.sent[instance] == nil {
		f.sent[instance] = map[int64]fakeCounts{}
	}
	if former, known := f.sent[instance][sequence]; known && former != c {
		f.changed = append(f.changed, sequence)
	}
	f.sent[instance][sequence] = c
}

func (f *fakeSums) has(instance string, sequence int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return sequence <= f.written[instance]
}

// write adds reports of an instance that are not written.
func (f *fakeSums) write(instance string, reports []fakeReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.most = max(f.most, len(reports))
	for _, r := range reports {
		if r.sequence > f.written[instance] {
			f.written[instance] = r.sequence
			f.sums.add(r.counts)
		}
	}
}

// fakeService is a service with one agent, by the comments of the contract. What
// it counts and what is pending is gone after a restart without memory; its
// database stays.
type fakeService struct {
	agentstatsv1.UnimplementedAgentServiceServer
	// sums is set if somebody watches reports: then they are acked when written.
	sums *fakeSums
	// lazy acks come when something is durable, or when one is asked for.
	lazy bool

	mu       sync.Mutex
	settings *agentstatsv1.Settings
	memory   map[string]*fakeInstance
	stream   *fakeStream
	// lives are the received bytes of each report, by life of the memory.
	lives [][]int64
	// violations of the contract by the client.
	violations []string
	requests   []*agentstatsv1.ConnectRequest
	receivedAt []time.Time
	headers    []metadata.MD
	ordinals   []int64
	// epochs that the hellos named; epoch is that of the newest session.
	epochs    []int64
	epoch     int64
	openedAt  []time.Time
	refuse    func(*agentstatsv1.ConnectRequest) *agentstatsv1.Refusal
	openError error
	fault     fault
	faultCode codes.Code
	// hang keeps the settings back.
	hang bool
	// mute keeps acks back.
	mute bool
	// linger keeps streams open after a goodbye.
	linger bool

	database  map[string]string
	lifecycle *agentstatsv1.Lifecycle
	apps      map[string]agentstatsv1.AppHealth
	network   *agentstatsv1.Network
	goodbyes  int
}

type fakeInstance struct {
	id       string
	received int64
	// pending values by key, with the sequence that holds durable back.
	pending map[string]fakePending
	// reports that are not written.
	reports []fakeReport
}

type fakeReport struct {
	sequence int64
	counts   fakeCounts
}

type fakePending struct {
	value    string
	sequence int64
}

type fakeStream struct {
	// resumed is the received sequence that the agent got, last the sequence
	// of its last request.
	resumed, last int64
	events        chan *agentstatsv1.ConnectResponse
	end           chan error
	gone          chan struct{}
}

func newFakeService() *fakeService {
	return &fakeService{
		settings: &agentstatsv1.Settings{
			ReportInterval: durationpb.New(30 * time.Second),
			Limits:         &agentstatsv1.Limits{MessageBytes: 64 << 10, MetadataReportKeyBytes: 6144},
		},
		memory:   map[string]*fakeInstance{},
		lives:    [][]int64{nil},
		database: map[string]string{},
		apps:     map[string]agentstatsv1.AppHealth{},
	}
}

// acked returns the received sequence that the agent gets.
func (i *fakeInstance) acked() int64 {
	if len(i.reports) > 0 {
		return min(i.received, i.reports[0].sequence-1)
	}
	return i.received
}

func (i *fakeInstance) durable() int64 {
	durable := i.acked()
	for _, p := range i.pending {
		durable = min(durable, p.sequence-1)
	}
	return durable
}

func (f *fakeService) Connect(server agentstatsv1.AgentService_ConnectServer) error {
	first, err := server.Recv()
	if err != nil {
		return err
	}
	var hang bool
	f.locked(func() { hang = f.hang })
	if hang {
		<-server.Context().Done()
		return server.Context().Err()
	}
	stream := &fakeStream{
		events: make(chan *agentstatsv1.ConnectResponse, 100),
		end:    make(chan error, 1),
		gone:   make(chan struct{}),
	}
	instance, resume, err := f.open(server.Context(), stream, first)
	if err != nil {
		return err
	}
	defer f.close(stream)
	if err := server.Send(resume); err != nil {
		return err
	}

	requests := make(chan *agentstatsv1.ConnectRequest)
	go func() {
		defer close(requests)
		for {
			req, err := server.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- req:
			case <-stream.gone:
				return
			}
		}
	}()
	halfClosed := requests
	for {
		select {
		case req, ok := <-halfClosed:
			if !ok {
				if server.Context().Err() != nil {
					return server.Context().Err()
				}
				if f.allAcked(instance) {
					return nil
				}
				halfClosed = nil
				continue
			}
			responses, err := f.take(instance, stream, req)
			if err != nil {
				return err
			}
			for _, resp := range responses {
				if err := server.Send(resp); err != nil {
					return err
				}
			}
			if err := f.hit(afterAck); err != nil {
				return err
			}
		case resp := <-stream.events:
			if err := server.Send(resp); err != nil {
				return err
			}
			if halfClosed == nil && f.allAcked(instance) {
				return nil
			}
		case err := <-stream.end:
			return err
		case <-server.Context().Done():
			return server.Context().Err()
		}
	}
}

func (f *fakeService) open(ctx context.Context, stream *fakeStream, first *agentstatsv1.ConnectRequest) (*fakeInstance, *agentstatsv1.ConnectResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.openedAt = append(f.openedAt, time.Now())
	md, _ := metadata.FromIncomingContext(ctx)
	f.headers = append(f.headers, md)
	if f.openError != nil {
		return nil, nil, f.openError
	}
	hello := first.GetHello()
	if hello == nil || first.GetSequence() != 0 || len(hello.GetInstanceId()) != 16 || hello.GetProtocolVersion() != 1 {
		f.violate("bad hello: %v", first)
	}
	f.ordinals = append(f.ordinals, hello.GetSession())
	f.epochs = append(f.epochs, hello.GetEpoch())
	f.epoch = max(f.epoch, hello.GetEpoch()) + 1
	if f.stream != nil {
		f.stream.end <- status.Error(codes.Aborted, "superseded")
	}
	f.stream = stream
	instance := f.memory[string(hello.GetInstanceId())]
	if instance == nil {
		instance = &fakeInstance{id: string(hello.GetInstanceId()), pending: map[string]fakePending{}}
		f.memory[string(hello.GetInstanceId())] = instance
	}
	settings := proto.CloneOf(f.settings)
	settings.Epoch = f.epoch
	stream.resumed, stream.last = instance.acked(), instance.acked()
	settings.Resume = &agentstatsv1.Resume{ReceivedSequence: instance.acked(), DurableSequence: instance.durable()}
	return instance, &agentstatsv1.ConnectResponse{Settings: settings}, nil
}

func (f *fakeService) close(stream *fakeStream) {
	close(stream.gone)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stream == stream {
		f.stream = nil
	}
}

func (f *fakeService) hit(point fault) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != point {
		return nil
	}
	f.fault = noFault
	return status.Error(f.faultCode, "fault")
}

func (f *fakeService) allAcked(i *fakeInstance) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(i.pending) == 0 && len(i.reports) == 0 && !f.linger
}

func (f *fakeService) violate(format string, args ...any) {
	f.violations = append(f.violations, fmt.Sprintf(format, args...))
}

func (f *fakeService) take(instance *fakeInstance, stream *fakeStream, req *agentstatsv1.ConnectRequest) ([]*agentstatsv1.ConnectResponse, error) {
	if err := f.hit(beforeTaking); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.requests = append(f.requests, req)
	f.receivedAt = append(f.receivedAt, time.Now())
	if req.GetSequence() <= stream.last {
		f.violate("sequence %d after %d", req.GetSequence(), stream.last)
	}
	stream.last = req.GetSequence()
	if req.GetStatsSuperseded() && len(req.GetStats().GetMetrics()) > 0 {
		f.violate("%d: samples of a report that is superseded", req.GetSequence())
	}
	if req.GetStats() != nil && f.sums != nil {
		f.sums.see(instance.id, req.GetSequence(), countsOf(req.GetStats()))
	}
	if req.GetSequence() <= instance.received {
		if !proto.Equal(req, &agentstatsv1.ConnectRequest{Sequence: req.GetSequence(), Stats: req.GetStats(), StatsSuperseded: req.GetStatsSuperseded()}) {
			f.violate("%d is sent again with more than its report", req.GetSequence())
		}
		f.mu.Unlock()
		return nil, f.hit(beforeAck)
	}
	instance.received = req.GetSequence()
	var responses []*agentstatsv1.ConnectResponse
	var refused []string
	if f.refuse != nil {
		if r := f.refuse(req); r != nil {
			refused = r.GetNames()
			responses = append(responses, &agentstatsv1.ConnectResponse{Refusals: []*agentstatsv1.Refusal{r}})
		}
	}
	if stats := req.GetStats(); stats != nil {
		life := len(f.lives) - 1
		f.lives[life] = append(f.lives[life], stats.GetRxBytes())
		if counts := countsOf(stats); f.sums != nil && counts != (fakeCounts{}) {
			instance.reports = append(instance.reports, fakeReport{req.GetSequence(), counts})
			if len(instance.reports) > 16 {
				// The agent has at most 16: another replica has acked the oldest.
				if !f.sums.has(instance.id, instance.reports[0].sequence) {
					f.violate("%d reports with counts are not acked", len(instance.reports))
				}
				instance.reports = instance.reports[1:]
			}
		}
	}
	if n := len(req.GetMetadata().GetMetadata()); n > 16 {
		f.violate("%d keys in a report", n)
	}
	for _, m := range req.GetMetadata().GetMetadata() {
		if len(refused) > 0 && refused[0] == m.GetKey() {
			continue
		}
		sequence := req.GetSequence()
		if p, ok := instance.pending[m.GetKey()]; ok {
			sequence = p.sequence
		}
		instance.pending[m.GetKey()] = fakePending{value: m.GetResult().GetValue(), sequence: sequence}
	}
	if lifecycle := req.GetLifecycle(); lifecycle != nil {
		f.lifecycle = lifecycle
	}
	for _, u := range req.GetAppHealth().GetUpdates() {
		f.apps[string(u.GetId())] = u.GetHealth()
	}
	if network := req.GetNetwork(); network != nil {
		f.network = network
	}
	if req.GetGoodbye() != nil {
		f.goodbyes++
	}
	if req.GetHello() != nil || proto.Equal(req, &agentstatsv1.ConnectRequest{Sequence: req.GetSequence()}) {
		f.violate("unexpected %v", req)
	}
	if !f.mute && (!f.lazy || req.GetAckNow() || len(responses) > 0 || req.GetGoodbye() != nil) {
		responses = append(responses, ackOf(instance))
	}
	f.mu.Unlock()
	return responses, f.hit(beforeAck)
}

func ackOf(i *fakeInstance) *agentstatsv1.ConnectResponse {
	return &agentstatsv1.ConnectResponse{Ack: &agentstatsv1.Ack{
		ReceivedSequence: i.acked(), DurableSequence: i.durable(),
	}}
}

// flush writes what is pending to the database and acks it.
func (f *fakeService) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, instance := range f.memory {
		for key, p := range instance.pending {
			f.database[key] = p.value
		}
		clear(instance.pending)
		if f.sums != nil {
			f.sums.write(instance.id, instance.reports)
			instance.reports = nil
		}
		if f.stream != nil && !f.mute {
			f.stream.events <- ackOf(instance)
		}
	}
}

// respond sends a response to the agent that is connected.
func (f *fakeService) respond(resp *agentstatsv1.ConnectResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stream != nil {
		f.stream.events <- resp
	}
}

// kill ends the stream of the agent that is connected.
func (f *fakeService) kill(code codes.Code) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stream != nil {
		select {
		case f.stream.end <- status.Error(code, "killed"):
		default:
		}
	}
}

func (f *fakeService) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.memory = map[string]*fakeInstance{}
	f.lives = append(f.lives, nil)
}

func (f *fakeService) locked(read func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	read()
}

// network connects clients with a server in memory; both ends can be broken.
type network struct {
	register func(*grpc.Server)
	options  []grpc.ServerOption

	mu       sync.Mutex
	listener *bufconn.Listener
	server   *grpc.Server
	conns    []net.Conn
}

func newNetwork(register func(*grpc.Server), options ...grpc.ServerOption) *network {
	n := &network{register: register, options: options}
	n.start()
	return n
}

func (n *network) start() {
	listener := bufconn.Listen(64 << 10)
	server := grpc.NewServer(n.options...)
	n.register(server)
	n.mu.Lock()
	n.listener, n.server = listener, server
	n.mu.Unlock()
	go func() { _ = server.Serve(listener) }()
}

func (n *network) stop() {
	n.mu.Lock()
	server := n.server
	n.mu.Unlock()
	server.Stop()
}

// cut breaks all connections: what is on the way is lost.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		_ = c.Close()
	}
	n.conns = nil
}

func (n *network) dial(ctx context.Context, _ string) (net.Conn, error) {
	n.mu.Lock()
	listener := n.listener
	n.mu.Unlock()
	conn, err := listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.conns = append(n.conns, conn)
	n.mu.Unlock()
	return conn, nil
}

func (n *network) plaintext() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(n.dial), grpc.WithTransportCredentials(insecure.NewCredentials())}
}

// startFake starts a fake service and a connection to it, which end with t.
func startFake(t *testing.T) (*fakeService, *network, *grpc.ClientConn) {
	t.Helper()
	fake := newFakeService()
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterAgentServiceServer(s, fake) })
	conn, err := grpc.NewClient("passthrough:///fake", n.plaintext()...)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		n.stop()
		fake.locked(func() { require.Empty(t, fake.violations) })
	})
	return fake, n, conn
}

func closeConn(t *testing.T, conn *grpc.ClientConn) {
	require.NoError(t, conn.Close())
}

// run runs f in the background; the returned function waits for its end.
func run(ctx context.Context, f func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			return errors.New("does not end")
		}
	}
}
