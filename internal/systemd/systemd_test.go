package systemd

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/readiness"
)

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// listen makes the socket of a service manager.
func listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// next returns the next message.
func next(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	b := make([]byte, 8192)
	n, err := conn.Read(b)
	require.NoError(t, err)
	return string(b[:n])
}

func alwaysReady() readiness.Answer { return readiness.Answer{Ready: true} }

// What is ready or not is said; READY=1 does not wait for it.
func TestMessages(t *testing.T) {
	conn := listen(t)
	reg := prometheus.NewRegistry()
	sessions := prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_sessions"})
	connections := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "agentstatsd_bridge_connections"}, []string{"kind"})
	reg.MustRegister(sessions, connections)
	sessions.Set(12)
	connections.WithLabelValues("agent").Set(1234567)
	connections.WithLabelValues("other").Set(5)
	var answer atomic.Pointer[readiness.Answer]
	answer.Store(&readiness.Answer{Reasons: map[string]string{"fleet": "registrations\nare not loaded", "replica": "database", "database": "it is away"}})
	n, err := New(reg, func() readiness.Answer { return *answer.Load() }, "6f1d", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	go func() { _ = n.Run(t.Context()) }()
	require.Equal(t, "READY=1\nSTATUS=not ready: database: it is away; fleet: registrations; are not loaded, 12 sessions, 1234567 connections of agents, replica 6f1d", next(t, conn))
	n.Reloading()
	require.Regexp(t, `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$`, next(t, conn))
	answer.Store(&readiness.Answer{Ready: true, Warnings: []string{"not reloaded: " + strings.Repeat("x", 5000)}})
	n.Reloaded()
	message := next(t, conn)
	if strings.HasPrefix(message, "STATUS=ready") { // it was seen before
		message = next(t, conn)
	}
	require.True(t, strings.HasPrefix(message, "READY=1\nSTATUS=ready, 12 sessions, 1234567 connections of agents, replica 6f1d, warning: not reloaded: xxx"), message)
	require.Less(t, len(message), 4096, "the manager drops longer ones")
	n.Stopping()
	n.Stopping()
	require.Equal(t, "STOPPING=1", next(t, conn))
	n.Reloading()
	require.Contains(t, next(t, conn), "RELOADING=1", "it stops once")
}

// That it became ready is said soon, whatever the watchdog's time is.
func TestReadyIsSaidSoon(t *testing.T) {
	conn := listen(t)
	t.Setenv("WATCHDOG_USEC", "3600000000")
	var ready atomic.Bool
	n, err := New(prometheus.NewRegistry(), func() readiness.Answer { return readiness.Answer{Ready: ready.Load()} }, "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	go func() { _ = n.Run(t.Context()) }()
	require.Equal(t, "READY=1\nWATCHDOG=1\nSTATUS=not ready:", next(t, conn))
	ready.Store(true)
	for message := ""; message != "WATCHDOG=1\nSTATUS=ready"; message = next(t, conn) {
	}
}

// The watchdog is notified only while each part answers, and that one does not is logged.
func TestWatchdogWaitsForAllParts(t *testing.T) {
	// A part hangs while the lock, which holds one value, is full.
	for name, hang := range map[string]func(lock chan struct{}, reg *prometheus.Registry) func() readiness.Answer{
		"readiness": func(lock chan struct{}, _ *prometheus.Registry) func() readiness.Answer {
			return func() readiness.Answer {
				lock <- struct{}{}
				defer func() { <-lock }()
				return alwaysReady()
			}
		},
		"metrics": func(lock chan struct{}, reg *prometheus.Registry) func() readiness.Answer {
			reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "x"}, func() float64 {
				lock <- struct{}{}
				defer func() { <-lock }()
				return 1
			}))
			return alwaysReady
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := listen(t)
			t.Setenv("WATCHDOG_USEC", "20000000")
			bubble.Test(t, func(t *testing.T) {
				var log lockedBuffer
				lock := make(chan struct{}, 1)
				reg := prometheus.NewRegistry()
				n, err := New(reg, hang(lock, reg), "", slog.New(slog.NewTextHandler(&log, nil)))
				require.NoError(t, err)
				require.Equal(t, 10*time.Second, n.interval)
				go func() { _ = n.Run(t.Context()) }()
				require.Equal(t, "READY=1\nWATCHDOG=1\nSTATUS=ready", next(t, conn))
				time.Sleep(n.interval + time.Second)
				require.Equal(t, "WATCHDOG=1", next(t, conn), "the line is the same")

				lock <- struct{}{}
				time.Sleep(2*n.interval - 2*time.Second)
				require.Empty(t, log.String())
				time.Sleep(time.Minute)
				require.Contains(t, log.String(), "a part of the process does not answer")
				require.Equal(t, 1, strings.Count(log.String(), "\n"))
				require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
				_, err = conn.Read(make([]byte, 100))
				var timeout net.Error
				require.ErrorAs(t, err, &timeout)
				require.True(t, timeout.Timeout())
				<-lock
				require.Equal(t, "WATCHDOG=1", next(t, conn))
			})
		})
	}
}

func TestWatchdogOfAnotherProcess(t *testing.T) {
	listen(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "1")
	n, err := New(prometheus.NewRegistry(), alwaysReady, "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.False(t, n.watchdog)
	t.Setenv("WATCHDOG_PID", "x")
	_, err = New(prometheus.NewRegistry(), alwaysReady, "", slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "WATCHDOG_PID")
}

// A manager that is gone is logged, and changes nothing.
func TestManagerIsGone(t *testing.T) {
	conn := listen(t)
	require.NoError(t, conn.Close())
	var log lockedBuffer
	n, err := New(prometheus.NewRegistry(), alwaysReady, "", slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	for range 5 {
		n.Reloading()
		n.Reloaded()
	}
	n.Stopping()
	require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
	require.Contains(t, log.String(), "the service manager cannot be notified")
}
