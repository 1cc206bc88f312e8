package listening

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// With no descriptor left, a real listener says so once, and when it accepts again.
func TestDescriptorsAreExhausted(t *testing.T) {
	var out bytes.Buffer
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer lis.Close()
	reg := prometheus.NewPedanticRegistry()
	l, err := New(lis, "grpc", reg, slog.New(slog.NewTextHandler(&out, nil)))
	require.NoError(t, err)
	// The kernel makes the connection without the listener.
	client, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", lis.Addr().String())
	require.NoError(t, err)
	defer client.Close()

	restore := exhaust(t)
	for range 5 {
		_, err = l.Accept()
		require.ErrorIs(t, err, syscall.EMFILE)
	}
	restore()
	conn, err := l.Accept()
	require.NoError(t, err)
	require.NoError(t, conn.Close())

	require.Equal(t, 2, strings.Count(out.String(), "\n"), out.String())
	require.Contains(t, out.String(), `level=WARN msg="connections cannot be accepted, trying again" listener=grpc address=127.0.0.1:`)
	require.Contains(t, out.String(), "reason=descriptors open_files_limit=")
	require.Contains(t, out.String(), `level=INFO msg="connections are accepted again" listener=grpc`)
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP agentstatsd_accept_errors_total Attempts of a listener to accept a connection that failed (descriptors: as the process may open no more files).
# TYPE agentstatsd_accept_errors_total counter
agentstatsd_accept_errors_total{listener="grpc",reason="descriptors"} 5
agentstatsd_accept_errors_total{listener="grpc",reason="other"} 0
`)))
}

// exhaust keeps the process from opening files until restore is called.
func exhaust(t *testing.T) (restore func()) {
	t.Helper()
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	f, err := os.Open(os.DevNull) // which gets the lowest descriptor that is free
	require.NoError(t, err)
	lowest := uint64(f.Fd())
	require.NoError(t, f.Close())
	low := limit
	low.Cur = lowest
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low))
	return func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)) }
}

// failing is a listener that fails as the kernel does.
type failing struct {
	net.Listener
	err error
}

func (f *failing) Accept() (net.Conn, error) { return nil, f.err }

func (*failing) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2112} }

// A listener that is closed has not failed. What fails for long is one line a minute.
func TestLinesOfAcceptErrors(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		lis := &failing{err: &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.ENFILE)}}
		l, err := New(lis, "prometheus", prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&out, nil)))
		require.NoError(t, err)
		for range 3 * 60 {
			_, err := l.Accept()
			require.ErrorIs(t, err, syscall.ENFILE)
			time.Sleep(time.Second)
		}
		require.Equal(t, 3, strings.Count(out.String(), "reason=descriptors"))
		out.Reset()
		lis.err = net.ErrClosed
		_, err = l.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		require.Empty(t, out.String())
		time.Sleep(time.Minute)
		lis.err = errors.New("no buffer space available")
		_, err = l.Accept()
		require.Error(t, err)
		require.Contains(t, out.String(), "reason=other")
	})
}
