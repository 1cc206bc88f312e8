package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/bridge"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const secret = "marked-secret"

// log is one that may be read while it is written.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is a coderd, the service, and a bridge between agents and both.
type rig struct {
	*testing.T
	service *edgetest.Service
	coderd  *codertest.RPC
	bridge  *bridge.Bridge
	addr    string // of the bridge
	log     *log
	reg     *prometheus.Registry
	stop    func() error // stops the bridge
	opts    bridge.Options

	upstream *httptest.Server
}

func start(t *testing.T, opts bridge.Options) *rig {
	r := &rig{T: t, service: edgetest.Start(t, edgetest.Settings{TCP: true, Batcher: batcher.Options{BatchSize: 500, FlushInterval: 20 * time.Millisecond, MaxPending: 10_000}}), coderd: &codertest.RPC{}}
	r.upstream = httptest.NewServer(r.coderd)
	t.Cleanup(r.upstream.Close)
	opts.Upstream, _ = url.Parse(r.upstream.URL)
	opts.DrainDelay, opts.DrainTimeout = -1, time.Millisecond
	if opts.Backoff == (client.Backoff{}) {
		opts.Backoff = client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}
	}
	r.opts = opts
	r.begin(opts)
	return r
}

// begin begins a bridge.
func (r *rig) begin(opts bridge.Options) {
	conn, err := client.Dial(r.service.Addr, client.DialOptions{Plaintext: true, Token: edgetest.CoderdToken}, grpc.WithUserAgent("bridge"))
	require.NoError(r, err)
	r.log, r.reg = &log{}, prometheus.NewPedanticRegistry()
	r.bridge, err = bridge.New(conn, opts, r.reg, slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(r, err)
	require.Error(r, r.bridge.Ready())
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r, err)
	r.addr = lis.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	begun := r.bridge // another one may begin before this is served
	go func() { ended <- begun.Serve(ctx, lis) }()
	stop := sync.OnceValue(func() error {
		defer conn.Close()
		cancel()
		return <-ended
	})
	r.stop = stop
	r.Cleanup(func() { _ = stop() })
}

// add has coderd and the service know agent n.
func (r *rig) add(n int) {
	r.service.Register(n)
	r.coderd.Add(codertest.Agent{ID: edgetest.ID(n), Token: edgetest.Token(n), Manifest: codertest.Manifest{
		AgentID: edgetest.ID(n), WorkspaceID: edgetest.ID(10_000 + n), AgentName: "main", OwnerUsername: "ada", Secret: secret,
		Apps:    []codertest.ManifestApp{{ID: edgetest.ID(50_000 + n), Slug: "code", Health: int(pb.AppHealth_APP_HEALTH_HEALTHY)}},
		Regions: map[int64]string{1: "Helsinki"},
	}.Encode()})
}

func (r *rig) dial(n int, opts codertest.DialOptions) *codertest.Session {
	s, err := codertest.Dial(r.Context(), r.addr, edgetest.Token(n), opts)
	require.NoError(r, err)
	r.Cleanup(func() { _ = s.Close() })
	return s
}

// call makes a call that coderd accepts, with messages in one field of its request.
func (r *rig) call(s *codertest.Session, name string, field protowire.Number, messages ...proto.Message) {
	_, err := s.Call(r.Context(), name, request(r, field, messages...))
	require.NoError(r, err)
}

func request(t testing.TB, field protowire.Number, messages ...proto.Message) (b []byte) {
	for _, m := range messages {
		encoded, err := proto.Marshal(m)
		require.NoError(t, err)
		b = protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), encoded)
	}
	return b
}

// await waits until the service serves a line.
func (r *rig) await(line string) {
	r.Helper()
	name, _, _ := strings.Cut(line, "{")
	r.until("serve "+line, func() bool { return slices.Contains(r.service.Exposition(name), line) })
}

func (r *rig) until(what string, happened func() bool) {
	r.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("not within two minutes: %s\nlog:\n%s\nserved:\n%s", what, r.log, strings.Join(r.service.Exposition(""), "\n"))
		}
	}
}

// metric returns the value of a metric of the bridge, summed over the series with the label value.
func (r *rig) metric(name, label string) (sum float64) {
	families, err := r.reg.Gather()
	require.NoError(r, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// What a stock agent says to coderd is served, and what coderd refused is not. Nothing that
// is nobody's business comes anywhere.
func TestAgentIsServed(t *testing.T) {
	connected := make(chan uuid.UUID, 10)
	r := start(t, bridge.Options{Connected: func(agentID, workspaceID uuid.UUID) {
		require.Equal(t, edgetest.ID(10_001), workspaceID)
		connected <- agentID
	}})
	r.add(1)
	r.coderd.Refuse = func(c codertest.Call) error {
		if bytes.Contains(c.Request, []byte("refused")) {
			return errors.New(secret)
		}
		return nil
	}
	s := r.dial(1, codertest.DialOptions{Header: http.Header{"Cookie": {"session=" + secret}, "X-Secret": {secret}}})
	r.call(s, codertest.GetManifest, 1)
	require.Equal(t, edgetest.ID(1), <-connected)
	const labels = `agent_name="main",username="ada",workspace_name="ws1"`
	r.await(`coderd_agents_up{template_name="docker",username="ada",workspace_name="ws1"} 1`)
	r.await(`coderd_agents_apps{agent_name="main",app_name="code",health="healthy",username="ada",workspace_name="ws1"} 1`)

	r.call(s, codertest.UpdateLifecycle, 1, &pb.Lifecycle{State: pb.Lifecycle_STATE_READY})
	network, err := s.Stream(t.Context(), codertest.Coordinate)
	require.NoError(t, err)
	node := codertest.Node{ID: 0x1234, Preferred: 1, Latencies: map[string]float64{"1-v4": 0.25, "1-v6": 0.5}}
	require.NoError(t, network.MsgSend(&codertest.Message{Bytes: node.UpdateSelf()}, codertest.Encoding{}))
	r.await(`coderd_agents_connections{agent_name="main",lifecycle_state="ready",status="connected",tailnet_node="nodeid:1234",username="ada",workspace_name="ws1"} 1`)
	r.await(`coderd_agents_connection_latencies_seconds{agent_name="main",derp_region="Helsinki",preferred="true",username="ada",workspace_name="ws1"} 0.25`)

	r.call(s, codertest.UpdateStats, 1) // a question
	r.call(s, codertest.UpdateStats, 1, &pb.Stats{RxBytes: 7, ConnectionCount: 2, Metrics: []*pb.Stats_Metric{
		{Name: "forwarded_gauge", Type: pb.Stats_Metric_TYPE_GAUGE, Value: 3},
	}})
	r.await(`coderd_agentstats_rx_bytes{` + labels + `} 7`)
	r.until("the forwarded gauge", func() bool { return len(r.service.Exposition("forwarded_gauge{")) == 1 })
	_, err = s.Call(t.Context(), codertest.UpdateStats, request(t, 1, &pb.Stats{RxBytes: 1000, Metrics: []*pb.Stats_Metric{{Name: "refused"}}}))
	require.Error(t, err)

	_, err = s.Call(t.Context(), codertest.BatchCreateLogs, []byte(secret))
	require.NoError(t, err)
	r.call(s, codertest.BatchUpdateMetadata, 2, &pb.Metadata{Key: "cpu", Result: &pb.Metadata_Result{Value: " 1 % "}})
	r.until("the metadata is stored", func() bool { return slices.Contains(r.service.StoredMetadata(1), "cpu=1 %") })

	// Of another role nothing is said, not even that it is there.
	streamer := r.dial(1, codertest.DialOptions{Role: "logstream"})
	r.call(streamer, codertest.GetManifest, 1)
	require.Empty(t, connected)

	require.Empty(t, r.service.Exposition("refused"))
	require.Equal(t, 2.0, r.metric("agentstatsd_bridge_calls_total", "UpdateStats"))
	require.Equal(t, 1.0, r.metric("agentstatsd_bridge_calls_total", "BatchUpdateMetadata"))
	require.Equal(t, 1.0, r.metric("agentstatsd_bridge_decoders", ""))
	require.Zero(t, r.metric("agentstatsd_bridge_decoders_given_up_total", ""))
	require.NoError(t, r.bridge.Ready())
	require.Empty(t, r.bridge.Warnings())

	r.call(s, codertest.UpdateLifecycle, 1, &pb.Lifecycle{State: pb.Lifecycle_STATE_OFF})
	r.until("its series vanish", func() bool { return len(r.service.Exposition("forwarded_gauge{")) == 0 })
	r.await(`coderd_agents_up{template_name="docker",username="ada",workspace_name="ws1"} 0`)
	require.NoError(t, r.stop())
	require.Error(t, r.bridge.Ready())

	families, err := r.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		require.NotContains(t, f.String(), secret)
	}
	require.NotContains(t, r.log.String(), secret)
	require.NotContains(t, r.service.Log.String(), secret)
	require.NotContains(t, strings.Join(r.service.Exposition(""), "\n"), secret)
	require.NotContains(t, strings.Join(r.service.StoredMetadata(1), "\n"), secret)
}

// An agent is connected while one of its connections is.
func TestConnectionsOfAnAgent(t *testing.T) {
	r := start(t, bridge.Options{})
	r.add(1)
	const up = `coderd_agents_up{template_name="docker",username="ada",workspace_name="ws1"} `
	first, second := r.dial(1, codertest.DialOptions{}), r.dial(1, codertest.DialOptions{})
	r.call(first, codertest.GetManifest, 1)
	r.call(second, codertest.GetManifest, 1)
	r.await(up + "1")
	require.NoError(t, first.Close())
	r.until("one is closed", func() bool { return r.metric("agentstatsd_bridge_decoders", "") == 1 })
	r.call(second, codertest.UpdateStats, 1, &pb.Stats{RxBytes: 5})
	r.await(`coderd_agentstats_rx_bytes{agent_name="main",username="ada",workspace_name="ws1"} 5`)
	r.await(up + "1")
	require.NoError(t, second.Close())
	r.await(up + "0")
}

// The connection of an agent goes on, whatever it is that is not decoded.
func TestGivenUp(t *testing.T) {
	r := start(t, bridge.Options{})
	r.add(1)
	s := r.dial(1, codertest.DialOptions{})
	stream, err := s.Open()
	require.NoError(t, err)
	_, err = stream.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	require.NoError(t, err)
	r.until("it is given up", func() bool { return r.metric("agentstatsd_bridge_decoders_given_up_total", "drpc") == 1 })
	r.call(s, codertest.GetManifest, 1)
	old := r.dial(1, codertest.DialOptions{Version: "1.0"})
	r.call(old, codertest.GetManifest, 1)
	require.Equal(t, 1.0, r.metric("agentstatsd_bridge_decoders_given_up_total", "version"))
	require.Equal(t, 1, strings.Count(r.log.String(), `level=WARN msg="a connection of an agent is not decoded any more`))
	require.Zero(t, r.metric("agentstatsd_bridge_calls_total", "GetManifest"))
}

// With the service away, and coderd after it, agents notice nothing but coderd.
func TestServiceIsAway(t *testing.T) {
	r := start(t, bridge.Options{CloseTimeout: time.Millisecond})
	r.add(1)
	r.service.Stop()
	s := r.dial(1, codertest.DialOptions{})
	r.call(s, codertest.GetManifest, 1)
	r.call(s, codertest.UpdateStats, 1, &pb.Stats{RxBytes: 5})
	r.until("it is a warning", func() bool { return len(r.bridge.Warnings()) == 1 })
	require.Contains(t, r.bridge.Warnings()[0], "agentstatsd cannot be reached")
	r.upstream.Close()
	_, err := codertest.Dial(t.Context(), r.addr, edgetest.Token(1), codertest.DialOptions{})
	require.ErrorContains(t, err, "502")
	require.Contains(t, r.bridge.Warnings()[1], "coderd cannot be reached")
	require.NoError(t, r.bridge.Ready())
	require.ErrorContains(t, r.stop(), "of 1 of 1 agents not all was received")
	<-s.Done()
}

// A coderd that takes all agents for one address is a warning that says what to do.
func TestCoderdThatTrustsNobody(t *testing.T) {
	r := start(t, bridge.Options{})
	require.NoError(t, r.stop())
	limited := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer limited.Close()
	r.opts.Upstream, _ = url.Parse(limited.URL)
	r.begin(r.opts)
	_, err := codertest.Dial(t.Context(), r.addr, edgetest.Token(1), codertest.DialOptions{})
	require.ErrorContains(t, err, "429")
	require.Len(t, r.bridge.Warnings(), 1)
	require.Contains(t, r.bridge.Warnings()[0], "CODER_PROXY_TRUSTED_ORIGINS")
}

// A header that is larger than any that agents and browsers have is not read.
func TestHeadersAreBounded(t *testing.T) {
	r := start(t, bridge.Options{})
	for size, want := range map[int]int{30 << 10: http.StatusUnauthorized, 40 << 10: http.StatusRequestHeaderFieldsTooLarge} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.addr+"/x", nil)
		require.NoError(t, err)
		req.Header.Set("Cookie", strings.Repeat("x", size))
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, want, resp.StatusCode)
	}
}

func TestOptions(t *testing.T) {
	conn, err := client.Dial("localhost:1", client.DialOptions{Plaintext: true, Token: edgetest.CoderdToken})
	require.NoError(t, err)
	defer conn.Close()
	u := &url.URL{Scheme: "http", Host: "coderd"}
	for want, opts := range map[string]bridge.Options{
		"upstream": {},
		"close timeout: want at least 0, got -1ns":        {Upstream: u, CloseTimeout: -1},
		"max decoder bytes: want at least 1048576, got 5": {Upstream: u, MaxDecoderBytes: 5},
		"drain timeout: want at least 0, got -1ns":        {Upstream: u, DrainTimeout: -1},
		"max connections: want at least 0, got -1":        {Upstream: u, MaxConnections: -1},
		"max agents: want at least 0, got -1":             {Upstream: u, MaxAgents: -1},
	} {
		_, err := bridge.New(conn, opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want)
	}
}
