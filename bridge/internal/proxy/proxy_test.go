package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/codertest"
)

const secret = "marked-secret"

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// kept is a Copy that keeps all.
type kept struct {
	mu     sync.Mutex
	bytes  [2][]byte // of the agent, of coderd
	closed int
}

func (k *kept) Add(fromAgent bool, b []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	side := 1
	if fromAgent {
		side = 0
	}
	k.bytes[side] = append(k.bytes[side], b...)
}

func (k *kept) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed++
}

// bridge is a proxy that listens.
type bridge struct {
	*Proxy
	addr   string
	copies chan *kept // one for each connection that is copied
	opened chan Handshake
	log    syncBuffer
	reg    *prometheus.Registry
}

func start(t *testing.T, upstream string) *bridge {
	t.Helper()
	return startWith(t, upstream, Options{})
}

func startWith(t *testing.T, upstream string, opts Options) *bridge {
	t.Helper()
	u, err := url.Parse(upstream)
	require.NoError(t, err)
	b := &bridge{copies: make(chan *kept, 10), opened: make(chan Handshake, 10), reg: prometheus.NewPedanticRegistry()}
	b.Proxy, err = New(u, func(h Handshake) Copy {
		k := &kept{}
		b.opened <- h
		b.copies <- k
		return k
	}, opts, b.reg, slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(b.Proxy)
	server.Config.ConnState, server.Config.ConnContext = b.ConnState, b.ConnContext
	server.Start()
	t.Cleanup(server.Close)
	b.addr = server.Listener.Addr().String()
	return b
}

var agentID = uuid.UUID{1}

func startCoderd(t *testing.T) (*codertest.RPC, *httptest.Server) {
	t.Helper()
	coderd := &codertest.RPC{}
	coderd.Add(codertest.Agent{ID: agentID, Token: "token-" + secret, Manifest: codertest.Manifest{AgentID: agentID, Secret: secret}.Encode()})
	mux := http.NewServeMux()
	mux.Handle(codertest.AgentPath, coderd)
	mux.HandleFunc("/derp/latency-check", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Query", r.URL.RawQuery)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "forwarded for "+r.Header.Get("X-Forwarded-For"))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return coderd, server
}

// What the agent and coderd send arrives as it was sent, and is copied so.
func TestBytesAreUnchanged(t *testing.T) {
	coderd, server := startCoderd(t)
	b := start(t, server.URL)
	recorder := &codertest.Recorder{}
	s, err := codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{Wrap: recorder.Wrap})
	require.NoError(t, err)
	request := bytes.Repeat([]byte("\x1a\x05"+secret), 100_000)
	for range 3 {
		_, err = s.Call(t.Context(), codertest.BatchCreateLogs, request)
		require.NoError(t, err)
	}
	before, _ := sentBy(recorder)
	got, err := s.Call(t.Context(), codertest.GetManifest, nil)
	require.NoError(t, err)
	require.Equal(t, codertest.Manifest{AgentID: agentID, Secret: secret}.Encode(), got)
	for _, call := range coderd.Accepted()[:3] {
		require.True(t, bytes.Equal(request, call.Request))
	}
	require.Equal(t, 1, b.Connections())
	require.NoError(t, s.Close())
	k := <-b.copies
	for b.Connections() > 0 {
		time.Sleep(time.Millisecond) // until the proxy has seen it
	}
	// Each may end before it has read the other's last words. What coderd answered has passed.
	agent, answers := sentBy(recorder)
	require.True(t, bytes.HasPrefix(agent, k.bytes[0]))
	require.Greater(t, len(k.bytes[0]), len(before))
	require.True(t, bytes.HasPrefix(k.bytes[1], answers))
	require.Equal(t, 1, k.closed)
	require.Equal(t, float64(len(k.bytes[0])), testutil.ToFloat64(b.metrics.fromAgent.bytes))
	require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.handshakes.WithLabelValues("101")))
	require.NotContains(t, b.log.String(), secret)
}

// sentBy returns what an agent and coderd have sent.
func sentBy(recorder *codertest.Recorder) (agent, coderd []byte) {
	for _, p := range recorder.Parts() {
		if p.FromAgent {
			agent = append(agent, p.Bytes...)
		} else {
			coderd = append(coderd, p.Bytes...)
		}
	}
	return agent, coderd
}

// A coderd with TLS gets the same, in HTTP/1.1.
func TestCoderdWithTLS(t *testing.T) {
	coderd := &codertest.RPC{}
	coderd.Add(codertest.Agent{ID: agentID, Token: "token", Manifest: codertest.Manifest{AgentID: agentID}.Encode()})
	server := httptest.NewUnstartedServer(coderd)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	b := startWith(t, server.URL, Options{TLS: &tls.Config{RootCAs: roots}})
	s, err := codertest.Dial(t.Context(), b.addr, "token", codertest.DialOptions{})
	require.NoError(t, err)
	_, err = s.Call(t.Context(), codertest.GetManifest, nil)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// The handshake is passed on as it came, but for offers of compression and the peer's
// address. So are coderd's refusals.
func TestHandshake(t *testing.T) {
	coderd, server := startCoderd(t)
	b := start(t, server.URL)
	header := http.Header{
		"X-Forwarded-For":          {"10.0.0.1, 10.0.0.2"},
		"X-Forwarded-Proto":        {"https"},
		"Cookie":                   {"a=" + secret},
		"User-Agent":               {"an agent"},
		"Sec-Websocket-Extensions": {"permessage-deflate; client_max_window_bits, x-other", "x-webkit-deflate-frame"},
	}
	s, err := codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{Header: header, Version: "2.9", Role: "agent"})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.Equal(t, Handshake{Version: "2.9"}, <-b.opened)
	got := coderd.Headers()[0]
	require.Equal(t, "10.0.0.1, 10.0.0.2, 127.0.0.1", got.Get("X-Forwarded-For"))
	require.Equal(t, "https", got.Get("X-Forwarded-Proto"))
	require.Equal(t, "a="+secret, got.Get("Cookie"))
	require.Equal(t, "an agent", got.Get("User-Agent"))
	require.Equal(t, "token-"+secret, got.Get("Coder-Session-Token"))
	require.Equal(t, []string{"x-other"}, got["Sec-Websocket-Extensions"])

	_, err = codertest.Dial(t.Context(), b.addr, secret, codertest.DialOptions{})
	require.ErrorContains(t, err, "401")
	_, err = codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{Version: "3.0"})
	require.ErrorContains(t, err, "400")
	s, err = codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{Role: "logstream"})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.Empty(t, b.opened, "of another role")

	resp, err := http.Get("http://" + b.addr + "/derp/latency-check?a=1;b=%zz")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Equal(t, http.StatusTeapot, resp.StatusCode)
	require.Equal(t, "forwarded for 127.0.0.1", string(body))
	require.Equal(t, "a=1;b=%zz", resp.Header.Get("X-Query"))
	require.NotContains(t, b.log.String(), secret)
}

// Where clients reach the bridge themselves, coderd does not get what they say of whom they
// are.
func TestForwardedHeadersAreDropped(t *testing.T) {
	coderd, server := startCoderd(t)
	b := startWith(t, server.URL, Options{DropForwarded: true})
	header := http.Header{
		"Forwarded": {"for=10.0.0.1"}, "X-Forwarded-For": {"10.0.0.1"}, "X-Forwarded-Host": {"other"}, "X-Forwarded-Proto": {"https"},
	}
	s, err := codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{Header: header})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	got := coderd.Headers()[0]
	require.Equal(t, []string{"127.0.0.1"}, got["X-Forwarded-For"])
	for _, name := range []string{"Forwarded", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		require.Empty(t, got[name])
	}
	in := httptest.NewRequest(http.MethodGet, "https://coder/x", nil)
	r := &httputil.ProxyRequest{In: in, Out: in.Clone(t.Context())}
	b.rewrite(r)
	require.Equal(t, []string{"https"}, r.Out.Header["X-Forwarded-Proto"], "the proxy ended TLS")
}

// A coderd that is away, or answers no HTTP, is logged once a minute, without what it said.
func TestCoderdIsAway(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(secret + "\r\n\r\n"))
			_ = conn.Close()
		}
	}()
	b := start(t, "http://"+lis.Addr().String())
	for range 3 {
		_, err = codertest.Dial(t.Context(), b.addr, secret, codertest.DialOptions{})
		require.ErrorContains(t, err, "502")
	}
	require.NoError(t, lis.Close())
	_, err = codertest.Dial(t.Context(), b.addr, secret, codertest.DialOptions{})
	require.ErrorContains(t, err, "502")
	require.Equal(t, 4.0, testutil.ToFloat64(b.metrics.unreachable))
	require.Equal(t, 1, strings.Count(b.log.String(), "level=WARN"), b.log.String())
	require.NotContains(t, b.log.String(), secret)
}

// pipeEnd is a connection that says when it is closed.
type pipeEnd struct {
	io.ReadWriter
	close func()
}

func (p pipeEnd) Close() error { p.close(); return nil }

// Connections are closed one after another when the proxy drains, and new ones refused.
func TestDrain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		u := &url.URL{Scheme: "http", Host: "coderd"}
		p, err := New(u, nil, Options{DrainTimeout: 40 * time.Second}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		began := time.Now()
		var mu sync.Mutex
		var closed []time.Duration
		add := func() bool {
			tun := &tunnel{metrics: p.metrics, ReadWriteCloser: pipeEnd{close: func() {
				mu.Lock()
				defer mu.Unlock()
				closed = append(closed, time.Since(began))
			}}}
			tun.close = func() { p.remove(tun, kindAgent) }
			return p.add(tun, kindAgent)
		}
		for range 4 {
			require.True(t, add())
		}
		p.Drain(t.Context())
		require.Equal(t, []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second}, closed)
		require.False(t, add())
		answer := httptest.NewRecorder()
		p.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, AgentPath, nil))
		require.Equal(t, http.StatusServiceUnavailable, answer.Code)
	})
	bubble.Test(t, func(t *testing.T) {
		u := &url.URL{Scheme: "http", Host: "coderd"}
		p, err := New(u, nil, Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		p.Drain(t.Context()) // of no connections
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p.Drain(ctx)
	})
}

func TestOptions(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, u := range []*url.URL{nil, {}, {Scheme: "ftp", Host: "coderd"}, {Scheme: "http"}} {
		_, err := New(u, nil, Options{}, prometheus.NewRegistry(), log)
		require.ErrorContains(t, err, "upstream")
	}
	u := &url.URL{Scheme: "http", Host: "coderd"}
	_, err := New(u, nil, Options{DialTimeout: -1}, prometheus.NewRegistry(), log)
	require.ErrorContains(t, err, "dial timeout: want at least 0, got -1ns")
	_, err = New(u, nil, Options{DrainTimeout: -1}, prometheus.NewRegistry(), log)
	require.ErrorContains(t, err, "drain timeout: want at least 0, got -1ns")
}
