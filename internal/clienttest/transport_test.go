package clienttest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// A transport that does not fit is logged with what to change. Trying again goes on, as
// the service may be set up anew.
func TestPushLogsAWrongTransport(t *testing.T) {
	ca := newAuthority(t)
	ca.write(t, "service", 2)
	pair, err := tls.LoadX509KeyPair(ca.path("service.crt"), ca.path("service.key"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: "service"}

	serve := func(options ...grpc.ServerOption) string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		server := grpc.NewServer(options...)
		agentstatsv1.RegisterCoderdServiceServer(server, &fakePushes{})
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		return listener.Addr().String()
	}
	plaintext := serve()
	secure := serve(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}})))
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	secureWeb := httptest.NewUnstartedServer(http.NotFoundHandler())
	secureWeb.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	secureWeb.StartTLS()
	t.Cleanup(secureWeb.Close)
	secureWeb.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	noALPN := acceptTLS(t, &tls.Config{Certificates: []tls.Certificate{pair}})

	// Each takes 5 s to end, as its last push fails.
	var pushers sync.WaitGroup
	t.Cleanup(pushers.Wait)
	ending := assert.New(t)
	for name, c := range map[string]struct {
		target string
		opts   client.DialOptions
		hint   string
	}{
		"TLS against plaintext":   {plaintext, client.DialOptions{TLS: config}, "the address has no TLS"},
		"plaintext against TLS":   {secure, client.DialOptions{Plaintext: true}, "must not be dialed in plaintext"},
		"plaintext against HTTP":  {web.Listener.Addr().String(), client.DialOptions{Plaintext: true}, "the address is one of HTTP"},
		"TLS against HTTP":        {web.Listener.Addr().String(), client.DialOptions{TLS: config}, "the address has no TLS"},
		"TLS against HTTPS":       {secureWeb.Listener.Addr().String(), client.DialOptions{TLS: config}, "the address is one of HTTPS"},
		"TLS without ALPN":        {noALPN, client.DialOptions{TLS: config}, "the address is one of HTTPS"},
		"plaintext against HTTPS": {secureWeb.Listener.Addr().String(), client.DialOptions{Plaintext: true}, "must not be dialed in plaintext"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := client.Dial(c.target, c.opts)
			require.NoError(t, err)
			logged := make(chan string, 1)
			pusher, err := client.NewPusher(conn, client.PushOptions{Gatherer: newGate("a_total"), Logger: slog.New(slog.NewTextHandler(firstLine(logged), nil))})
			require.NoError(t, err)
			pushers.Go(func() {
				ending.NoError(pusher.Run(t.Context()))
				ending.NoError(conn.Close())
			})
			line := <-logged
			require.Contains(t, line, "stream broke")
			require.Contains(t, line, " hint=")
			require.Contains(t, line, c.hint)
		})
	}
}

// acceptTLS returns the address of a server that makes handshakes and says nothing.
func acceptTLS(t *testing.T, config *tls.Config) string {
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	require.NoError(t, err)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(io.Discard, conn)
			})
		}
	})
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		conns.Wait()
	})
	return listener.Addr().String()
}

// firstLine sends the first line of a log.
type firstLine chan string

func (f firstLine) Write(p []byte) (int, error) {
	select {
	case f <- string(p):
	default:
	}
	return len(p), nil
}

// A credential that is refused from the start is returned and logged. Later it is tried
// again: a token is about to change.
func TestPushReturnsARefusedCredential(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		log, logger := newLog()
		refused := status.Error(codes.Unauthenticated, "unknown token")
		fake.locked(func() { fake.fail = refused })
		err := client.PushGatherer(t.Context(), conn, newGate("a_total"), client.PushOptions{Logger: logger})
		require.Equal(t, codes.Unauthenticated, status.Code(err))
		require.ErrorContains(t, err, "push metrics: ")
		require.Len(t, log.with("stream refused"), 1)
		require.Contains(t, log.with("stream refused")[0], "unknown token")

		fake.locked(func() { fake.fail = nil })
		pusher, err := client.NewPusher(conn, client.PushOptions{Gatherer: newGate("a_total"), Logger: logger})
		require.NoError(t, err)
		stop := run(t.Context(), pusher.Run)
		synctest.Wait()
		fake.locked(func() { fake.fail = refused })
		time.Sleep(time.Hour)
		fake.locked(func() { fake.fail = nil })
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Greater(t, len(fake.numbers()), 2)
		require.NoError(t, stop())
	})
	// One in a file that is not there yet is waited for, also with the real service.
	s := startService()
	defer s.close()
	path := filepath.Join(t.TempDir(), "token")
	conn, err := client.Dial("passthrough:///service", client.DialOptions{Plaintext: true, TokenFile: path}, grpc.WithContextDialer(s.dial))
	require.NoError(t, err)
	defer closeConn(t, conn)
	logged := make(chan string, 1)
	pushed := make(chan struct{})
	pusher, err := client.NewPusher(conn, client.PushOptions{
		Gatherer: newGate("a_total"), Backoff: client.Backoff{Min: time.Millisecond}, Logger: slog.New(slog.NewTextHandler(firstLine(logged), nil)),
	})
	require.NoError(t, err)
	stop := run(t.Context(), func(ctx context.Context) error { defer close(pushed); return pusher.Run(ctx) })
	require.Contains(t, <-logged, "read token: open")
	require.NoError(t, os.WriteFile(path, []byte(coderdToken), 0o600))
	require.NoError(t, stop())
	<-pushed
	require.Contains(t, pushedText(t, s), "\na_total 0\n")
	wrong := s.conn("wrong")
	defer closeConn(t, wrong)
	err = client.PushGatherer(t.Context(), wrong, newGate("a_total"), client.PushOptions{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))
}
