package proxy

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// spareConns are connections beyond the limit, which are answered that there are too many.
const spareConns = 64

// What becomes of connections beyond the limit.
const (
	refusedAnswered = "answered"
	refusedClosed   = "closed"
	refusedIdle     = "idle"
)

// conns are the connections of the listener for agents, bounded by their descriptors: one
// that is served has two, its own and that to coderd, another one has one.
//
//	waiting --a request is served--> serving --it has ended--> waiting
//	waiting --a newer one needs its place--> closed
//	serving --its upgraded connection ends--> closed
type conns struct {
	metrics *metrics

	mu sync.Mutex
	// Guarded by mu. max is of requests that are served. waiting has the net.Conns of those
	// that no request is served of, the longest first; serving is the number of requests
	// that are served, strangers that of those which are no agents'.
	max       int
	open      map[net.Conn]*conn
	waiting   *list.List
	serving   int
	strangers int
	fullAt    time.Time // when an agent was last refused; zero: never
}

// conn is one connection. The mu of conns guards its fields.
type conn struct {
	waits    *list.Element // nil: a request is served
	hijacked bool
}

func newConns(limit int, m *metrics) *conns {
	return &conns{max: limit, metrics: m, open: make(map[net.Conn]*conn), waiting: list.New()}
}

func (s *conns) limit() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.max
}

// setLimit changes the limit. What there is above a lowered one stays.
func (s *conns) setLimit(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.max = limit
}

// MaxConnections is that of Options, or of SetMaxConnections.
func (p *Proxy) MaxConnections() int { return p.conns.limit() }

// SetMaxConnections changes Options.MaxConnections. What there is above a lowered limit
// stays. After an error nothing has changed.
func (p *Proxy) SetMaxConnections(limit int) error {
	opts := p.opts
	opts.MaxConnections = limit
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return err
	}
	p.conns.setLimit(opts.MaxConnections)
	return nil
}

// changed is called with each connection that is new, or has ended.
func (s *conns) changed(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if victim := s.add(c); victim != nil {
			go func() { _ = victim.Close() }() // TLS may take a while to say so
		}
	case http.StateHijacked:
		s.mu.Lock()
		defer s.mu.Unlock()
		if known := s.open[c]; known != nil {
			known.hijacked = true
		}
	case http.StateClosed:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.removeLocked(c)
	}
}

// add adds a connection, and returns the one that is to be closed for it; nil: none is.
func (s *conns) add(c net.Conn) (victim net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open)+s.serving >= 2*s.max+spareConns {
		longest := s.waiting.Front()
		if longest == nil {
			s.metrics.refused.WithLabelValues(refusedClosed).Inc()
			return c
		}
		s.metrics.refused.WithLabelValues(refusedIdle).Inc()
		victim, _ = longest.Value.(net.Conn)
		s.removeLocked(victim)
	}
	s.open[c] = &conn{waits: s.waiting.PushBack(c)}
	return victim
}

func (s *conns) removeLocked(c net.Conn) {
	if known := s.open[c]; known != nil {
		delete(s.open, c)
		if known.waits != nil {
			s.waiting.Remove(known.waits)
		}
	}
}

type connKey struct{}

// serve notes that a request is served until done is called; nil: there are too many. Those
// that are no agents' leave a quarter of all to agents: they need no token, and may last.
func (s *conns) serve(ctx context.Context, ofAgent bool) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving >= s.max || !ofAgent && s.strangers >= s.max-s.max/4 {
		if ofAgent {
			s.fullAt = time.Now()
		}
		s.metrics.refused.WithLabelValues(refusedAnswered).Inc()
		return nil
	}
	s.serving++
	if !ofAgent {
		s.strangers++
	}
	c, _ := ctx.Value(connKey{}).(net.Conn)
	if known := s.open[c]; known != nil {
		s.waiting.Remove(known.waits)
		known.waits = nil
	}
	return func() { s.served(c, ofAgent) }
}

// served notes that a request of a connection has ended. One that was taken over ends then.
func (s *conns) served(c net.Conn, ofAgent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving--
	if !ofAgent {
		s.strangers--
	}
	switch known := s.open[c]; {
	case known == nil:
	case known.hijacked:
		s.removeLocked(c)
	default:
		known.waits = s.waiting.PushBack(c)
	}
}

// ConnState is that of the http.Server that serves the proxy.
func (p *Proxy) ConnState(c net.Conn, state http.ConnState) { p.conns.changed(c, state) }

// ConnContext is that of the http.Server that serves the proxy.
func (p *Proxy) ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// FullAt returns when an agent was last refused as there were too many; zero: never.
func (p *Proxy) FullAt() time.Time {
	p.conns.mu.Lock()
	defer p.conns.mu.Unlock()
	return p.conns.fullAt
}
