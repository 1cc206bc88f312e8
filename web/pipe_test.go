package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// pipes is a listener whose connections are pipes, for bubbles of synctest.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{accept: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return pipeAddr("listener") }

type pipeAddr string

func (a pipeAddr) Network() string { return "tcp" }
func (a pipeAddr) String() string  { return string(a) }

type pipeConn struct {
	net.Conn
	remote pipeAddr
}

func (c *pipeConn) RemoteAddr() net.Addr { return c.remote }

// dial connects from address, which has a port.
func (p *pipes) dial(address string) net.Conn {
	client, server := net.Pipe()
	p.accept <- &pipeConn{server, pipeAddr(address)}
	return client
}

// client is one HTTP client of one address.
func (p *pipes) client(address string, conf *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return p.dial(address), nil },
		TLSClientConfig:   conf,
		ForceAttemptHTTP2: conf != nil,
	}}
}

// start runs a server until the end of the test.
func start(t *testing.T, next http.Handler, opts Options, log io.Writer) *pipes {
	t.Helper()
	if log == nil {
		log = io.Discard
	}
	opts.Name = "test"
	s, err := NewServer(next, opts, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	lis := newPipes()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return lis
}

// large is a handler of responses that no buffer holds.
func large() http.Handler {
	chunk := bytes.Repeat([]byte("x"), 64<<10)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute))
		for range 64 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
}

const largeBytes = 64 * 64 << 10

func scrapesOf(t *testing.T, next http.Handler, slots int) *Slots {
	t.Helper()
	s, err := NewSlots(next, "scrapes", slots, rate.Inf, prometheus.NewRegistry())
	require.NoError(t, err)
	return s
}

// readScrape reads a whole response.
func readScrape(t *testing.T, c *http.Client, scheme string) (status, size int) {
	t.Helper()
	resp, err := c.Get(scheme + "://service/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, int(n)
}

// raw sends a request as text and returns the response's head.
func raw(t *testing.T, c net.Conn, text string) *http.Response {
	t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	return resp
}
