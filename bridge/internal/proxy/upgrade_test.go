package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
)

// DERP upgrades a connection to no WebSocket. Where a proxy takes all requests, it passes
// that on, too, with the Host of a wildcard name, and nobody decodes it.
func TestDERPIsPassedOn(t *testing.T) {
	hosts := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		// It sends at once, and echoes what it gets.
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\nkey")
		_, _ = io.Copy(conn, buffered)
	}))
	defer server.Close()
	b := start(t, server.URL)
	conn, err := net.Dial("tcp", b.addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprint(conn, "GET /derp HTTP/1.1\r\nHost: 8080--main--ws1--ada.coder.example.com\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
	require.NoError(t, err)
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	require.Equal(t, "DERP", resp.Header.Get("Upgrade"))
	require.Equal(t, "8080--main--ws1--ada.coder.example.com", <-hosts)
	_, err = conn.Write([]byte("\x00\x01frames"))
	require.NoError(t, err)
	got := make([]byte, len("key\x00\x01frames"))
	_, err = io.ReadFull(reader, got)
	require.NoError(t, err)
	require.Equal(t, "key\x00\x01frames", string(got))
	require.Empty(t, b.opened)
	require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.connections.WithLabelValues(kindOther)))
}

// upgrading is a coderd that upgrades each connection, whatever for, to a protocol.
func upgrading(t *testing.T, protocol string) (server *httptest.Server, conns <-chan net.Conn) {
	accepted := make(chan net.Conn, 10)
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: "+protocol+"\r\nConnection: Upgrade\r\n\r\n")
			accepted <- conn
		}
	}))
	t.Cleanup(server.Close)
	return server, accepted
}

const handshake = "GET " + codertest.AgentPath + "?version=2.6 HTTP/1.1\r\nHost: coder\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// dial opens a connection, and sends what is said.
func (b *bridge) dial(t *testing.T, said string) *net.TCPConn {
	conn, err := net.Dial("tcp", b.addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, said)
	require.NoError(t, err)
	return conn.(*net.TCPConn)
}

func readString(t *testing.T, from io.Reader, n int) string {
	got := make([]byte, n)
	_, err := io.ReadFull(from, got)
	require.NoError(t, err)
	return string(got)
}

// What an agent sends before it has coderd's answer arrives, too, and each side can end what
// it sends alone.
func TestEarlyBytesAndHalves(t *testing.T) {
	server, conns := upgrading(t, "websocket")
	b := start(t, server.URL)
	agent := b.dial(t, handshake+"early,")
	coderd := (<-conns).(*net.TCPConn)
	defer func() { _ = coderd.Close() }()
	require.NoError(t, coderd.SetDeadline(time.Now().Add(20*time.Second)))
	require.Equal(t, "early,", readString(t, coderd, 6))
	received := bufio.NewReader(agent)
	resp, err := http.ReadResponse(received, nil)
	require.NoError(t, err)
	_ = resp.Body.Close()
	_, err = io.WriteString(agent, "late")
	require.NoError(t, err)
	require.Equal(t, "late", readString(t, coderd, 4))

	require.NoError(t, coderd.CloseWrite())
	_, err = received.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	_, err = io.WriteString(agent, ", and later")
	require.NoError(t, err)
	require.NoError(t, agent.CloseWrite())
	rest, err := io.ReadAll(coderd)
	require.NoError(t, err)
	require.Equal(t, ", and later", string(rest))
	b.untilServing(t, 0)
	k := <-b.copies
	k.mu.Lock()
	defer k.mu.Unlock()
	require.Equal(t, "early,late, and later", string(k.bytes[0]))
	require.Equal(t, 1, k.closed)
}

// A coderd that switches to something else than it was asked for has no connection.
func TestSwitchToSomethingElse(t *testing.T) {
	server, conns := upgrading(t, "other")
	b := start(t, server.URL)
	agent := b.dial(t, handshake)
	coderd := <-conns
	resp, err := http.ReadResponse(bufio.NewReader(agent), nil)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Equal(t, http.StatusBadGateway, resp.StatusCode)
	_, err = io.ReadAll(coderd)
	require.NoError(t, err, "it is closed")
	_ = coderd.Close()
	b.untilServing(t, 0)
	require.Zero(t, b.Connections())
	require.Equal(t, 1, (<-b.copies).closed)
	require.Zero(t, testutil.ToFloat64(b.metrics.handshakes.WithLabelValues("101")))
	require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.handshakes.WithLabelValues("502")))
}

// Whoever sends nonsense does not have it look as if coderd were away,
// nor as if it took all agents for one address.
func TestStrangersRaiseNoWarnings(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	b := start(t, server.URL)
	answers := func(path string, code int) func() bool {
		return func() bool {
			of := b.metrics.requests
			if path == codertest.AgentPath {
				of = b.metrics.handshakes
			}
			return testutil.ToFloat64(of.WithLabelValues(fmt.Sprint(code))) == 1
		}
	}
	malformed := b.dial(t, "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
	require.Eventually(t, answers("/x", http.StatusBadGateway), 20*time.Second, time.Millisecond)
	_ = malformed.Close()
	invalid := b.dial(t, "GET "+codertest.AgentPath+" HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: \xc3\xa9\r\n\r\n")
	require.Eventually(t, answers(codertest.AgentPath, http.StatusBadGateway), 20*time.Second, time.Millisecond)
	_ = invalid.Close()
	resp, err := http.Get("http://" + b.addr + "/login")
	require.NoError(t, err)
	_ = resp.Body.Close()
	limited, away := b.Trouble()
	require.True(t, limited.IsZero())
	require.True(t, away.IsZero())
	require.Zero(t, testutil.ToFloat64(b.metrics.unreachable))
	require.Empty(t, b.log.String())
	resp, err = http.Get("http://" + b.addr + codertest.AgentPath)
	require.NoError(t, err)
	_ = resp.Body.Close()
	limited, _ = b.Trouble()
	require.False(t, limited.IsZero())
}

// The log says why coderd does not answer, as far as it is nothing that coderd said.
func TestWhyCoderdDoesNotAnswer(t *testing.T) {
	closing, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = closing.Close() }()
	go func() {
		for {
			conn, err := closing.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_ = conn.Close()
		}
	}()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	unknown := httptest.NewUnstartedServer(http.NotFoundHandler())
	unknown.Config.ErrorLog = silent
	unknown.StartTLS()
	defer unknown.Close()
	for url, want := range map[string]string{
		"http://" + closing.Addr().String():         "it closed the connection",
		"https://" + plain.Listener.Addr().String(): "it does not speak TLS",
		unknown.URL: "certificate signed by unknown authority",
	} {
		b := start(t, url)
		resp, err := http.Get("http://" + b.addr + "/")
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, http.StatusBadGateway, resp.StatusCode)
		require.Contains(t, b.log.String(), want)
	}
}

// lender is a reader that keeps the buffer which it was given.
type lender struct {
	io.Reader
	buffer []byte
}

func (l *lender) Read(b []byte) (int, error) {
	l.buffer = b
	return l.Reader.Read(b)
}

// Nothing that passed stays in the buffers.
func TestBuffersAreCleared(t *testing.T) {
	m, err := newMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	for _, n := range []int{10, busyBytes} { // of a buffer that is idle, and of a busy one
		from := &lender{Reader: strings.NewReader(strings.Repeat("x", idleBytes+n))}
		to := &receiver{Reader: from}
		var arrived bytes.Buffer
		_, err = (&tunnel{ReadWriteCloser: to, metrics: m}).WriteTo(&arrived)
		require.NoError(t, err)
		require.Equal(t, idleBytes+n, arrived.Len())
		require.Equal(t, make([]byte, len(from.buffer)), from.buffer)
	}
}

// scripted is a reader that reads so many bytes each time.
type scripted struct {
	sizes   []int
	buffers []int // that it was given
}

func (s *scripted) Read(b []byte) (int, error) {
	s.buffers = append(s.buffers, len(b))
	if len(s.sizes) == 0 {
		return 0, io.EOF
	}
	n := s.sizes[0]
	s.sizes = s.sizes[1:]
	return n, nil
}

// A direction has the large buffer only while much passes.
func TestBusyBuffer(t *testing.T) {
	m, err := newMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	from := &scripted{sizes: []int{100, idleBytes, 20_000, 8000, 10}}
	_, err = (&tunnel{ReadWriteCloser: &receiver{Reader: from}, metrics: m}).WriteTo(io.Discard)
	require.NoError(t, err)
	require.Equal(t, []int{idleBytes, idleBytes, busyBytes, busyBytes, idleBytes, idleBytes}, from.buffers)
}
