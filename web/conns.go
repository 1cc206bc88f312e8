package web

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// conn is one connection.
type conn struct {
	net     net.Conn
	address netip.Prefix
	opened  time.Time

	// trusted is since when scrapes are served whole on it: see Slots.
	trusted time.Time

	// Guarded by the mutex of conns. requests are being served; served is when the last
	// one was, zero: none yet.
	requests int
	served   time.Time
	closed   bool
}

// reset makes the close of the connection a reset, so that the client knows that what
// came is not all.
func (c *conn) reset() {
	if tcp, ok := c.net.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

// conns are the connections of a listener, bounded in number. One beyond the limit
// replaces a connection without a request. That is the one that has waited the longest
// for its first request, else the longest idle one. If there is none, it is closed.
type conns struct {
	// refused counts what is closed for which limit: all, address.
	refused func(limit string)

	mu sync.Mutex
	// Guarded by mu.
	max, maxPerAddress int
	// all has them by what the listener below accepted.
	all       map[net.Conn]*conn
	addresses map[netip.Prefix]int
}

// limits returns how many there may be, in all and of one address.
func (l *conns) limits() (all, perAddress int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.max, l.maxPerAddress
}

func (l *conns) setLimits(all, perAddress int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.max, l.maxPerAddress = all, perAddress
}

// add makes room for c, or reports false.
func (l *conns) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addresses[c.address] >= l.maxPerAddress {
		l.refused(limitAddress)
		if !l.evictLocked(func(o *conn) bool { return o.address == c.address }) {
			return false
		}
	}
	if len(l.all) >= l.max {
		l.refused(limitAll)
		most := l.mostLocked()
		// Whoever has many gives way first.
		if !l.evictLocked(func(o *conn) bool { return l.addresses[o.address] == most }) &&
			!l.evictLocked(func(*conn) bool { return true }) {
			return false
		}
	}
	l.all[c.net] = c
	l.addresses[c.address]++
	return true
}

// most returns how many connections the address has that has the most.
func (l *conns) most() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mostLocked()
}

func (l *conns) mostLocked() int {
	most := 0
	for _, n := range l.addresses {
		most = max(most, n)
	}
	return most
}

// evictLocked closes one of the connections of which among is true.
func (l *conns) evictLocked(among func(*conn) bool) bool {
	var victim *conn
	for _, c := range l.all {
		if c.requests == 0 && among(c) && (victim == nil || c.before(victim)) {
			victim = c
		}
	}
	if victim == nil {
		return false
	}
	l.removeLocked(victim)
	victim.reset() // nothing is on its way, and nothing lingers
	_ = victim.net.Close()
	return true
}

// before reports whether c gives way before o.
func (c *conn) before(o *conn) bool {
	if c.served.IsZero() != o.served.IsZero() {
		return c.served.IsZero()
	}
	if c.served.IsZero() {
		return c.opened.Before(o.opened)
	}
	return c.served.Before(o.served)
}

func (l *conns) removeLocked(c *conn) {
	if c.closed {
		return
	}
	c.closed = true
	delete(l.all, c.net)
	if l.addresses[c.address]--; l.addresses[c.address] == 0 {
		delete(l.addresses, c.address)
	}
}

// find returns the connection below c, which may be one of TLS; nil: it is not, or
// no longer, one of these.
func (l *conns) find(c net.Conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if known := l.all[c]; known != nil {
			return known
		}
		below, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = below.NetConn()
	}
}

// remove forgets a connection that was closed.
func (l *conns) remove(c net.Conn) {
	if known := l.find(c); known != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.removeLocked(known)
	}
}

func (l *conns) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// serve notes that a request of c is being served until done is called.
func (l *conns) serve(c *conn) (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.requests++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.requests--
		c.served = time.Now()
	}
}

// boundedListener accepts what conns has room for.
type boundedListener struct {
	net.Listener
	conns *conns
}

// Accept implements net.Listener.
func (l boundedListener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{net: accepted, address: prefixOf(accepted.RemoteAddr().String()), opened: time.Now()}
		if l.conns.add(c) {
			return accepted, nil
		}
		c.reset()
		_ = accepted.Close()
	}
}

// prefixOf returns what counts as one address: all of IPv4, the network of IPv6, as
// its hosts have as many addresses as they like.
func prefixOf(hostport string) netip.Prefix {
	addr, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return netip.Prefix{}
	}
	ip := addr.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

type connKey struct{}

// connOf returns the connection of a request; a new one for a request of a test that
// came over none.
func connOf(r *http.Request) *conn {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		return c
	}
	return &conn{address: prefixOf(r.RemoteAddr)}
}

func withConn(ctx context.Context, c *conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}
