package pubsub

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/redact"
)

// redacted is an error of a library, without the passwords that its text may have.
type redacted struct{ error }

// Error implements error.
func (r redacted) Error() string { return redact.Text(r.error.Error()) }

// Unwrap returns the error itself.
func (r redacted) Unwrap() error { return r.error }

// reconnects spaces the attempts to connect.
var reconnects = backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}

// link is the state of the connection on which messages arrive.
type link struct {
	metrics *metrics
	outage  *outage.Log

	mu sync.Mutex
	// cause is why there is no connection; nil: there is one.
	cause error
	// wasConnected is true once there was a connection.
	wasConnected bool
}

func newLink(m *metrics, log *slog.Logger) *link {
	lost := outage.New(log, "no connection to the pubsub, trying again", "connected to the pubsub")
	return &link{metrics: m, outage: lost, cause: errNotRunning}
}

// noteLost notes that there is no connection, and the cause.
func (l *link) noteLost(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cause = cause
	l.outage.Failed(context.Background(), redacted{cause})
}

// noteConnected notes that there is a connection, and that subscribers were
// notified.
func (l *link) noteConnected() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cause = nil
	if l.wasConnected {
		l.metrics.reconnects.Inc()
	}
	l.outage.Works(context.Background())
	l.wasConnected = true
}

// noteEnded notes that Run has ended.
func (l *link) noteEnded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cause = errNotRunning
}

// err returns nil while there is a connection.
func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return fmt.Errorf("no connection to the pubsub: %w", l.cause)
	}
	return nil
}

// newDialer returns the dialer of connections. The kernel finds out within 20 s
// that the peer of an idle connection is gone, also where nothing is sent.
func newDialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 2,
	}}
}
