package handshake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/credentials"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
)

// lineHandler has the lines of a log.
type lineHandler struct {
	slog.Handler
	lines chan string
}

func (h lineHandler) Handle(_ context.Context, r slog.Record) error {
	text := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "error" {
			text += " " + a.String()
		}
		return true
	})
	h.lines <- text
	return nil
}

// failingClients are clients with which no handshake succeeds, by the reason.
var failingClients = map[string]func(t *testing.T, conn net.Conn, roots *x509.CertPool){
	failedClosed: func(_ *testing.T, conn net.Conn, _ *x509.CertPool) { _ = conn.Close() },
	failedNotTLS: func(t *testing.T, conn net.Conn, _ *x509.CertPool) {
		_, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
	},
	failedRejected: func(t *testing.T, conn net.Conn, _ *x509.CertPool) {
		require.Error(t, tls.Client(conn, &tls.Config{ServerName: "example.com", NextProtos: []string{"h2"}}).Handshake())
	},
	failedCertificate: func(t *testing.T, conn net.Conn, roots *x509.CertPool) {
		client := tls.Client(conn, &tls.Config{ServerName: "example.com", RootCAs: roots, NextProtos: []string{"h2"}})
		_ = client.Handshake()
		_, err := client.Read(make([]byte, 1))
		require.ErrorContains(t, err, "certificate required")
	},
	failedUnsupported: func(t *testing.T, conn net.Conn, roots *x509.CertPool) {
		require.Error(t, tls.Client(conn, &tls.Config{
			ServerName: "example.com", RootCAs: roots, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, //nolint:gosec // that is the test
		}).Handshake())
	},
	failedLimit: func(t *testing.T, conn net.Conn, _ *x509.CertPool) {
		// It says hello, and nothing more.
		hello := recordedHello(t)
		_, err := conn.Write(hello)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, conn)
	},
}

// recordedHello returns the first message of a client.
func recordedHello(t *testing.T) []byte {
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: "example.com", NextProtos: []string{"h2"}}).Handshake()
	}()
	hello := make([]byte, 4096)
	n, err := server.Read(hello)
	require.NoError(t, err)
	require.NoError(t, server.Close())
	return hello[:n]
}

// Handshakes that fail are counted and logged by their reasons, behind gRPC and behind
// net/http.
func TestFailuresHaveReasons(t *testing.T) {
	site := httptest.NewTLSServer(http.NotFoundHandler())
	defer site.Close()
	roots := x509.NewCertPool()
	roots.AddCert(site.Certificate())
	for _, behind := range []string{"gRPC", "HTTP"} {
		for reason, fail := range failingClients {
			t.Run(behind+" "+reason, func(t *testing.T) {
				opts := Options{}
				if reason == failedLimit {
					opts.Timeout = 20 * time.Millisecond
				}
				lines := make(chan string, 10)
				g, err := New(opts, "test", prometheus.NewPedanticRegistry(), slog.New(lineHandler{slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug}), lines}))
				require.NoError(t, err)
				inner := &tls.Config{Certificates: site.TLS.Certificates, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert}
				if reason != failedCertificate {
					inner.ClientAuth = tls.NoClientCert
				}
				conf := &tls.Config{GetConfigForClient: g.Config(func() *tls.Config { return inner })}
				lis, err := net.Listen("tcp", "127.0.0.1:0")
				require.NoError(t, err)
				defer func() { _ = lis.Close() }()
				if behind == "gRPC" {
					go func() {
						conn, err := lis.Accept()
						if err == nil {
							_, _, err = credentials.NewTLS(conf).ServerHandshake(conn)
							g.Failed(conn.RemoteAddr(), err)
						}
					}()
				} else {
					server := &http.Server{TLSConfig: conf, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(errorLines(g.FailedHTTP), "", 0)}
					go func() { _ = server.ServeTLS(lis, "", "") }()
					defer func() { _ = server.Close() }()
				}
				conn, err := net.Dial("tcp", lis.Addr().String())
				require.NoError(t, err)
				defer func() { _ = conn.Close() }()
				fail(t, conn, roots)
				level := "WARN"
				if reason == failedClosed {
					level = "DEBUG"
				}
				require.Equal(t, level+" TLS handshakes failed handshakes=1 listener=test reason="+reason+" peer=127.0.0.1", <-lines)
				require.Equal(t, 1.0, testutil.ToFloat64(g.metrics.failed.WithLabelValues(reason)))
			})
		}
	}
}

// errorLines is the error log of an http.Server.
type errorLines func(line string) bool

func (l errorLines) Write(line []byte) (int, error) {
	l(string(line))
	return len(line), nil
}

// A client of gRPC that does not name HTTP/2 fails, too.
func TestFailureOfProtocol(t *testing.T) {
	require.Equal(t, failedUnsupported, failureOf("credentials: cannot check peer: missing selected ALPN property. If you upgraded from a grpc-go version earlier than 1.67"))
	require.Equal(t, failedOther, failureOf("something else"))
	g := newGate(t, Options{})
	require.False(t, g.FailedHTTP("http: panic serving 10.0.0.1:99: a bug"))
	require.False(t, g.FailedHTTP("http: TLS handshake error from nobody"))
	require.False(t, (*Gate)(nil).FailedHTTP("http: TLS handshake error from 10.0.0.1:99: EOF"))
}

// The log has one line a minute of each reason.
func TestFailuresAreLoggedOnceAMinute(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out edgetest.Log
		g, err := New(Options{}, "test", prometheus.NewPedanticRegistry(), slog.New(slog.NewTextHandler(&out, nil)))
		require.NoError(t, err)
		peer := &net.TCPAddr{IP: net.IPv6loopback, Port: 99}
		for range 100 {
			g.Failed(peer, errors.New("tls: first record does not look like a TLS handshake"))
			g.Failed(peer, io.EOF)
		}
		require.Contains(t, out.String(), `level=WARN msg="TLS handshakes failed" handshakes=1 listener=test reason=not_tls peer=::1 error="tls: first`)
		require.Equal(t, 1, strings.Count(out.String(), "\n"))
		time.Sleep(time.Minute)
		g.Failed(peer, errors.New("tls: first record does not look like a TLS handshake"))
		require.Equal(t, 2, strings.Count(out.String(), "\n"))
		require.Contains(t, out.String(), "handshakes=100 listener=test reason=not_tls peer=::1")
	})
}
