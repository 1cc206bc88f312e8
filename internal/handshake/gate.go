// Package handshake bounds the TLS handshakes of a listener: their number at once, of
// all and of each address, and the time of each. It counts and logs those that fail.
package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/recurring"
)

const (
	// patience is how old a handshake is at least that gives way to one that waits.
	// A good one takes two round trips.
	patience = time.Second
	// evictInterval is the time between two looks for one that must give way.
	evictInterval = 250 * time.Millisecond
)

var errNoRoom = errors.New("too many handshakes")

// Gate bounds handshakes. One counts from the client's first message, which may
// take long to come, to its end: connections that say nothing take no room here.
//
//	first message -> waiting -> running -> ended
//	                    |          |
//	                    +-> wait   +-> timeout, evicted: the connection is closed
type Gate struct {
	listener string
	metrics  *metrics
	log      *slog.Logger
	failures map[string]*recurring.Events // by reason

	mu sync.Mutex
	// Guarded by mu.
	opts      Options
	running   []*entry // oldest first
	waiting   []*entry // oldest first
	addresses map[netip.Prefix]int
}

// entry is one handshake.
type entry struct {
	conn    net.Conn
	address netip.Prefix
	granted chan struct{} // closed when it runs

	// Guarded by Gate.mu.
	since   time.Time // it runs
	reason  string    // why it was ended; empty: it was not
	timeout *time.Timer
}

// New returns a gate of the listener of that name, whose metrics are registered.
func New(opts Options, listener string, reg prometheus.Registerer, log *slog.Logger) (*Gate, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("handshake options: %w", err)
	}
	labelled := prometheus.WrapRegistererWith(prometheus.Labels{"listener": listener}, reg)
	m, err := newMetrics(labelled)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	g := &Gate{
		listener: listener, metrics: m, log: log, failures: newFailures(),
		opts: opts, addresses: make(map[netip.Prefix]int),
	}
	if err := g.registerGauges(labelled); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if err := g.registerLimits(listener, reg); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return g, nil
}

// Options returns the options in force, with their defaults.
func (g *Gate) Options() Options {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opts
}

func (g *Gate) inForce() *Options {
	opts := g.Options()
	return &opts
}

// Reconfigure changes the options. Handshakes that go on are not ended by a lowered limit.
// After an error nothing has changed.
func (g *Gate) Reconfigure(opts Options) error {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("handshake options: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opts = opts
	g.grantLocked(time.Now())
	return nil
}

// Config returns a tls.Config.GetConfigForClient that returns the configuration once
// there is room for the handshake. It blocks until then.
func (g *Gate) Config(config func() *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := g.enter(hello.Context(), hello.Conn); err != nil {
			return nil, err
		}
		return config(), nil
	}
}

// enter waits for room. The handshake ends with its context.
func (g *Gate) enter(ctx context.Context, conn net.Conn) error {
	e := &entry{conn: conn, address: addressOf(conn.RemoteAddr()), granted: make(chan struct{})}
	within := g.Options().Timeout
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	deadline := time.Now().Add(within)
	g.mu.Lock()
	g.waiting = append(g.waiting, e)
	g.grantLocked(time.Now())
	g.mu.Unlock()
	if err := g.await(ctx, e, timeout.C); err != nil {
		return err
	}
	g.mu.Lock()
	e.timeout = time.AfterFunc(time.Until(deadline), func() { g.end(e, refusedTimeout) })
	g.mu.Unlock()
	context.AfterFunc(ctx, func() { g.leave(e) })
	return nil
}

// await returns nil once e runs.
func (g *Gate) await(ctx context.Context, e *entry, timeout <-chan time.Time) error {
	select {
	case <-e.granted:
		return nil
	default:
	}
	ticker := time.NewTicker(evictInterval)
	defer ticker.Stop()
	for {
		select {
		case <-e.granted:
			return nil
		case <-ticker.C:
			g.evict(e)
			continue
		case <-timeout:
		case <-ctx.Done():
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		i := slices.Index(g.waiting, e)
		if i < 0 {
			return nil // it runs, since a moment ago
		}
		g.waiting = slices.Delete(g.waiting, i, i+1)
		g.metrics.refused.WithLabelValues(refusedWait).Inc()
		return errNoRoom
	}
}

// grantLocked lets those run that there is room for.
func (g *Gate) grantLocked(now time.Time) {
	for i := 0; i < len(g.waiting) && len(g.running) < g.opts.Max; {
		e := g.waiting[i]
		if g.addresses[e.address] >= g.opts.MaxPerAddress {
			i++
			continue
		}
		g.waiting = slices.Delete(g.waiting, i, i+1)
		g.addresses[e.address]++
		e.since = now
		g.running = append(g.running, e)
		close(e.granted)
	}
}

// evict ends the oldest handshake that keeps e, if e has waited the longest, from
// running.
func (g *Gate) evict(e *entry) {
	g.mu.Lock()
	if len(g.waiting) == 0 || g.waiting[0] != e {
		g.mu.Unlock()
		return
	}
	ofAddress := g.addresses[e.address] >= g.opts.MaxPerAddress
	i := slices.IndexFunc(g.running, func(r *entry) bool {
		return r.reason == "" && (!ofAddress || r.address == e.address)
	})
	if i < 0 || time.Since(g.running[i].since) < patience {
		g.mu.Unlock()
		return
	}
	victim := g.running[i]
	g.mu.Unlock()
	g.end(victim, refusedEvicted)
}

// end closes the connection of a handshake that runs.
func (g *Gate) end(e *entry, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.reason != "" || !slices.Contains(g.running, e) {
		return
	}
	e.reason = reason
	g.metrics.refused.WithLabelValues(reason).Inc()
	_ = e.conn.Close() // which ends the handshake
}

// leave makes room.
func (g *Gate) leave(e *entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e.timeout.Stop()
	g.running = slices.DeleteFunc(g.running, func(r *entry) bool { return r == e })
	if g.addresses[e.address]--; g.addresses[e.address] == 0 {
		delete(g.addresses, e.address)
	}
	g.grantLocked(time.Now())
}

// addressOf returns what counts as one address; zero: it is none of IP.
func addressOf(addr net.Addr) netip.Prefix {
	parsed, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := parsed.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // the bits are within the address
	return prefix
}
