package pubsub

import (
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// startNATS starts a server on a port of 127.0.0.1, a free one for port -1.
func startNATS(t testing.TB, port int, change func(*server.Options)) *server.Server {
	opts := &server.Options{Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true}
	if change != nil {
		change(opts)
	}
	s, err := server.NewServer(opts)
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() { stopNATS(s) })
	require.True(t, s.ReadyForConnections(time.Minute))
	return s
}

func stopNATS(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

func portOf(s *server.Server) int { return s.Addr().(*net.TCPAddr).Port }

func newNATS(t testing.TB, url string, opts Options) (*NATS, *logged) {
	log := &logged{}
	n, err := NewNATS(url, opts, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	return n, log
}

func openNATS(t testing.TB) *NATS {
	n, _ := newNATS(t, startNATS(t, -1, nil).ClientURL(), Options{})
	runEngine(t, n)
	waitConnected(n, true)
	return n
}

func TestNATS(t *testing.T) {
	testContract(t, func(t testing.TB) Engine { return openNATS(t) })
}

func TestNATSReconnect(t *testing.T) {
	s := startNATS(t, -1, nil)
	port := portOf(s)
	n, log := newNATS(t, s.ClientURL(), Options{})
	stopNATS(s)
	testReconnect(t, n, n.metrics, log,
		func() { s = startNATS(t, port, nil) },
		func() { stopNATS(s) })
}

func TestNATSReplicas(t *testing.T) {
	s := startNATS(t, -1, nil)
	var replicas []*NATS
	for range 2 {
		n, _ := newNATS(t, s.ClientURL(), Options{})
		runEngine(t, n)
		waitConnected(n, true)
		replicas = append(replicas, n)
	}
	testReplicas(t, replicas[0], replicas[1])
}

// Subscribers are notified of what the client library drops: here the engine stands still while
// more arrives than may wait.
func TestNATSSlowConnection(t *testing.T) {
	n := openNATS(t)
	got := subscribe(t, n, "a")
	publish(t, n, "a", "first")
	got.waitFor("first")
	n.mu.Lock()
	for i := range 2 * maxReceived {
		require.NoError(t, n.conn.Publish(subjectPrefix+"a", []byte(strconv.Itoa(i))))
	}
	// The library has taken in all of them when it sees the answer.
	require.NoError(t, n.conn.Flush())
	n.mu.Unlock()
	publish(t, n, "a", "last")
	require.Contains(t, got.waitFor("last"), "nil")
	require.Greater(t, testutil.ToFloat64(n.metrics.droppedConnection), float64(maxReceived-10))
}

// What no engine published is handed over as missed.
func TestNATSForeign(t *testing.T) {
	n := openNATS(t)
	got := subscribe(t, n, "a")
	for _, payload := range []string{"", "\x00", "\xff", strings.Repeat("p", MaxPayload+1)} {
		require.NoError(t, n.conn.Publish(subjectPrefix+"a", []byte(payload)))
	}
	publish(t, n, "a", "1")
	require.Equal(t, "nil", got.waitFor("1")[0])
	require.NotContains(t, got.waitFor("1"), "")
}

func TestNATSLeavesNothing(t *testing.T) {
	s := startNATS(t, -1, nil)
	proxy := newProxy(t, s.Addr().String())
	testLeavesNothing(t, proxy, func() Engine {
		n, _ := newNATS(t, "nats://"+proxy.address(), Options{Timeout: time.Hour})
		return n
	})
}

func TestNATSBreaks(t *testing.T) {
	s := startNATS(t, -1, nil)
	proxy := newProxy(t, s.Addr().String())
	publisher, _ := newNATS(t, "nats://"+proxy.address(), Options{})
	receiver, _ := newNATS(t, s.ClientURL(), Options{})
	runEngine(t, receiver)
	waitConnected(receiver, true)
	testBreaks(t, publisher, receiver, proxy)
}

func TestNATSUnsubscribes(t *testing.T) {
	n := openNATS(t)
	require.Equal(t, 1, n.conn.NumSubscriptions(), "to pings")
	var cancels []func()
	for range 3 {
		cancel, err := n.Subscribe("a", func([]byte) {})
		require.NoError(t, err)
		cancels = append(cancels, cancel)
		require.Equal(t, 2, n.conn.NumSubscriptions(), "shared")
	}
	for _, cancel := range cancels {
		require.Equal(t, 2, n.conn.NumSubscriptions())
		cancel()
	}
	require.Equal(t, 1, n.conn.NumSubscriptions())
}

func TestNATSSilentServer(t *testing.T) {
	s := startNATS(t, -1, nil)
	proxy := newProxy(t, s.Addr().String())
	n, _ := newNATS(t, "nats://"+proxy.address(), Options{CheckInterval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond})
	testSilentServer(t, n, proxy)
}

func TestNATSCredentials(t *testing.T) {
	const secret = "s3cr3t/&?#%"
	s := startNATS(t, -1, func(o *server.Options) { o.Username, o.Password = "user", secret })
	u := url.URL{Scheme: "nats", User: url.UserPassword("user", secret), Host: s.Addr().String()}
	n, log := newNATS(t, u.String(), Options{})
	stop := runEngine(t, n)
	waitConnected(n, true)
	stop()
	require.NotContains(t, log.String(), "s3cr3t")

	proxy := newProxy(t, s.Addr().String())
	u.User, u.Host = url.UserPassword("user", "wrong-s3cr3t"), proxy.address()
	n, log = newNATS(t, u.String(), Options{})
	runEngine(t, n)
	proxy.waitAccepted(4) // the library's default is to give up after two
	waitError(n, "no connection to the pubsub: nats: Authorization Violation")
	require.NotContains(t, n.Connected().Error()+log.String(), "s3cr3t")

	for _, text := range []string{
		"", "nats://", "127.0.0.1:4222", "http://127.0.0.1", "nats://user:s3cr3t/x@127.0.0.1", "nats://user:1/s3cr3t@127.0.0.1",
		"nats://user:s3cr3t%zz@127.0.0.1", "nats://127.0.0.1,nats://user:s3cr3t@[::1", "nats:user:s3cr3t@host",
	} {
		_, err := NewNATS(text, Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "pubsub: NATS: the URL ", text)
		require.NotContains(t, err.Error(), "s3cr3t")
	}
}

// tls:// is never plaintext.
func TestNATSRequiresTLS(t *testing.T) {
	s := startNATS(t, -1, nil)
	n, _ := newNATS(t, "tls://"+s.Addr().String(), Options{})
	runEngine(t, n)
	waitError(n, "secure connection")
}

func TestNATSOptions(t *testing.T) {
	reg := prometheus.NewRegistry()
	_, err := NewNATS("nats://127.0.0.1", Options{PingInterval: -1}, reg, slog.New(slog.DiscardHandler))
	require.EqualError(t, err, "pubsub options: ping interval: want at least 0, got -1ns")
	_, err = NewNATS("nats://a,tls://b:1,nats://token@[::1]:4222", Options{}, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	_, err = NewNATS("nats://a", Options{}, reg, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "pubsub: register metrics: duplicate metrics collector")
}

// The servers show whose connections they have.
func TestConnectionNames(t *testing.T) {
	s := startNATS(t, -1, nil)
	n, _ := newNATS(t, s.ClientURL(), Options{Name: "agentstatsd 0a1b2c3d pod-1"})
	runEngine(t, n)
	waitConnected(n, true)
	connections, err := s.Connz(nil)
	require.NoError(t, err)
	require.Len(t, connections.Conns, 1)
	require.Equal(t, "agentstatsd 0a1b2c3d pod-1", connections.Conns[0].Name)

	for text, want := range map[string]string{
		"postgres://h/d":                       "agentstatsd 0a1b2c3d pod-1",
		"postgres://h/d?application_name=mine": "mine",
	} {
		p, err := NewPostgres(text, Options{Name: "agentstatsd 0a1b2c3d pod-1"}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		require.Equal(t, want, p.config.RuntimeParams["application_name"])
	}
}

func BenchmarkNATS(b *testing.B) { benchmarkEngine(b, openNATS(b)) }
