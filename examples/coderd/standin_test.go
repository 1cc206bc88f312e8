package coderd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/hashicorp/yamux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"
	"storj.io/drpc/drpcconn"

	"github.com/coder/agentstatsd/client"
	after "github.com/coder/agentstatsd/examples/coderd/after"
	"github.com/coder/agentstatsd/examples/coderd/agentproto"
	"github.com/coder/agentstatsd/examples/coderd/agents"
	before "github.com/coder/agentstatsd/examples/coderd/before"
)

// binary is the agentstatsd that the tests run against.
var binary string

func TestMain(m *testing.M) {
	if os.Getenv(processEnv) != "" {
		runProcess()
		return
	}
	dir, err := os.MkdirTemp("", "agentstatsd-example-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "agentstatsd")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/agentstatsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build agentstatsd: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// lockedBuffer is a log that can be read while it is written.
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

// await waits until happened returns true, as other processes do what they do when they
// do it.
func await(t *testing.T, what string, happened func() bool) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for !happened() {
		require.True(t, time.Now().Before(deadline), "not within 3 minutes: %s", what)
		time.Sleep(20 * time.Millisecond)
	}
}

// service is one process of agentstatsd after another, over one data directory and the
// same two addresses.
type service struct {
	dir, grpcAddr, httpAddr string
	options                 []string
	log                     lockedBuffer
	stop                    func() // kills the process
}

// given has the addresses that addr has returned.
var given sync.Map

// addr is one that nobody listens on. Its port is below those that systems assign to
// clients, and that other tests use (from 15,000): nobody gets it while its process is not
// running.
func addr(t *testing.T) string {
	t.Helper()
	for {
		a := net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(5_000)))
		if _, again := given.LoadOrStore(a, true); again {
			continue
		}
		if l, err := net.Listen("tcp", a); err == nil {
			require.NoError(t, l.Close())
			return a
		}
	}
}

func startService(t *testing.T, options ...string) *service {
	t.Helper()
	s := &service{dir: t.TempDir(), grpcAddr: addr(t), httpAddr: addr(t), options: options, stop: func() {}}
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("log of the service:\n%s", s.log.String())
		}
	})
	s.start(t)
	return s
}

// start starts a process, and waits until it is ready.
func (s *service) start(t *testing.T) {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"serve", "--data-dir", s.dir, "--grpc-address", s.grpcAddr, "--prometheus-address", s.httpAddr}, s.options...)...)
	cmd.Stderr = &s.log
	require.NoError(t, cmd.Start())
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	await(t, "the service is ready", func() bool {
		resp, err := http.Get("http://" + s.httpAddr + "/-/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (s *service) url() string {
	return "agentstatsd://" + s.grpcAddr + "?plaintext=true&token_file=" + filepath.Join(s.dir, "coderd-token")
}

// scrape returns the lines that Prometheus sees of the families.
func (s *service) scrape(t *testing.T, families ...string) (lines []string) {
	t.Helper()
	resp, err := http.Get("http://" + s.httpAddr + "/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		for _, family := range families {
			if strings.HasPrefix(line, family+"{") || strings.HasPrefix(line, family+" ") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return lines
}

// metadata returns the value that is stored.
func (s *service) metadata(t *testing.T, agent uuid.UUID, key string) string {
	t.Helper()
	conn, err := client.DialURL(s.url())
	require.NoError(t, err)
	defer conn.Close()
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	all, err := coderd.Metadata(t.Context(), agent)
	require.NoError(t, err)
	for _, a := range all {
		for _, v := range a.GetValues() {
			if v.GetKey() == key {
				return v.GetValue()
			}
		}
	}
	return ""
}

// coderd is one that runs.
type coderd struct {
	addr     string
	registry *prometheus.Registry
	log      lockedBuffer
	cancel   context.CancelFunc
	ended    chan struct{}
	err      error // may be read when ended is closed
}

// startCoderd starts a coderd: the one that has adopted the service, or, if there is no
// URL, the one before that.
func startCoderd(t *testing.T, database *agents.Database, statsURL string, collectors ...prometheus.Collector) *coderd {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	c := &coderd{addr: listener.Addr().String(), registry: prometheus.NewRegistry(), cancel: cancel, ended: make(chan struct{})}
	c.registry.MustRegister(collectors...)
	logger := slog.New(slog.NewTextHandler(&c.log, nil))
	go func() {
		defer close(c.ended)
		if statsURL == "" {
			c.err = before.Run(ctx, before.Config{Listener: listener, Database: database, Registry: c.registry, Logger: logger})
			return
		}
		c.err = after.Run(ctx, after.Config{Listener: listener, Database: database, Registry: c.registry, Logger: logger, StatsURL: statsURL})
	}()
	t.Cleanup(func() {
		cancel()
		<-c.ended
		if t.Failed() {
			t.Logf("log of coderd:\n%s", c.log.String())
		}
	})
	return c
}

// endsWithin bounds the end of a coderd. It waits 3 s for the service, and another one for
// functions that hang; the machine may be busy. What it must not wait for takes 30 s, as
// the next report does, or for ever.
const endsWithin = 20 * time.Second

// stop ends it, and returns how long that took.
func (c *coderd) stop(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	c.cancel()
	<-c.ended
	require.NoError(t, c.err)
	return time.Since(began)
}

// agent is one connection of an agent to a coderd, or of another program with its token.
type agent struct {
	t       *testing.T
	session *yamux.Session
}

func connect(t *testing.T, c *coderd, token, role string) *agent {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	url := "ws://" + c.addr + "/api/v2/workspaceagents/me/rpc?version=2.0"
	if role != "" {
		url += "&role=" + role
	}
	socket, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: http.Header{"Coder-Session-Token": {token}}})
	require.NoError(t, err)
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Client(websocket.NetConn(ctx, socket, websocket.MessageBinary), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = session.Close() })
	return &agent{t, session}
}

// call has each call go over a stream of its own, as agents do.
func (a *agent) call(f func(context.Context, agentproto.DRPCAgentClient) error) error {
	a.t.Helper()
	stream, err := a.session.Open()
	require.NoError(a.t, err)
	conn := drpcconn.New(stream)
	defer func() { _ = conn.Close() }()
	return f(a.t.Context(), agentproto.NewDRPCAgentClient(conn))
}

func (a *agent) updateStats(stats *agentproto.Stats) error {
	a.t.Helper()
	return a.call(func(ctx context.Context, c agentproto.DRPCAgentClient) error {
		resp, err := c.UpdateStats(ctx, &agentproto.UpdateStatsRequest{Stats: stats})
		if err == nil {
			require.Equal(a.t, 30*time.Second, resp.GetReportInterval().AsDuration())
		}
		return err
	})
}

func (a *agent) updateMetadata(key, value string) error {
	a.t.Helper()
	return a.call(func(ctx context.Context, c agentproto.DRPCAgentClient) error {
		_, err := c.BatchUpdateMetadata(ctx, &agentproto.BatchUpdateMetadataRequest{Metadata: []*agentproto.Metadata{
			{Key: key, Result: &agentproto.WorkspaceAgentMetadata_Result{Value: value}},
		}})
		return err
	})
}

// updateLifecycle says that the state is reached now.
func (a *agent) updateLifecycle(state agentproto.Lifecycle_State) error {
	a.t.Helper()
	return a.call(func(ctx context.Context, c agentproto.DRPCAgentClient) error {
		_, err := c.UpdateLifecycle(ctx, &agentproto.UpdateLifecycleRequest{Lifecycle: &agentproto.Lifecycle{State: state, ChangedAt: timestamppb.Now()}})
		return err
	})
}

func (a *agent) updateHealth(app uuid.UUID, health agentproto.AppHealth) error {
	a.t.Helper()
	return a.call(func(ctx context.Context, c agentproto.DRPCAgentClient) error {
		_, err := c.BatchUpdateAppHealths(ctx, &agentproto.BatchUpdateAppHealthRequest{Updates: []*agentproto.BatchUpdateAppHealthRequest_HealthUpdate{
			{Id: app[:], Health: health},
		}})
		return err
	})
}
