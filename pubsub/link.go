package pubsub

import (
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coder/agentstatsd/internal/backoff"
)

// reconnects spaces the attempts to connect.
var reconnects = backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}

// link is whether the connection on which messages arrive stands.
type link struct {
	metrics *metrics
	log     *slog.Logger

	mu sync.Mutex
	// why the connection does not stand; nil if it does.
	why error
	// before is true once it stood; told once its loss was logged.
	before, told bool
}

func newLink(m *metrics, log *slog.Logger) *link {
	return &link{metrics: m, log: log, why: errNotRunning}
}

// lost notes that there is no connection and why; of several in a row the
// first is logged.
func (l *link) lost(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = why
	if !l.told {
		l.told = true
		l.log.Warn("no connection to the pubsub, trying again", "error", why)
	}
}

// made notes that the connection stands, and that subscribers were told.
func (l *link) made() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = nil
	if l.before {
		l.metrics.reconnects.Inc()
	}
	if l.told {
		l.log.Info("connected to the pubsub")
	}
	l.before, l.told = true, false
}

// ended notes that Run has ended.
func (l *link) ended() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = errNotRunning
}

// err returns nil while the connection stands.
func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why != nil {
		return fmt.Errorf("no connection to the pubsub: %w", l.why)
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
