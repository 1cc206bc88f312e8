package grpcserver

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"github.com/coder/agentstatsd/agent"
)

// sweepPause is the shortest time between two looks for connections that are
// closed.
const sweepPause = 100 * time.Millisecond

// connections bounds the connections of the listener: all of them, and those of one
// address that have not made an authenticated call yet. An ingress, or a network
// behind one address, has many agents, so those are not counted by address.
//
// gRPC reads a TCP connection that is idle without a buffer, but only if it is not
// wrapped. So there is no callback when a connection is closed. Closed connections
// are looked for when a limit is reached.
type connections struct {
	limited *prometheus.CounterVec
	coderds *coderds
	log     *slog.Logger
	logged  logLimit

	mu sync.Mutex
	// Guarded by mu.

	max, perAddress int
	// maxCalls on a connection are let through before one of them is authenticated.
	// Who makes more of them is disconnected: their answers wait in memory for a
	// peer that does not read.
	maxCalls int
	// timeout bounds the time until the first authenticated call, or between two
	// of open services.
	timeout time.Duration
	// callRate is how many calls a second are read from a connection of agents, a
	// quarter of them at once. Each is a goroutine, and all that are ready go
	// before who comes next.
	callRate int

	all       map[*net.TCPAddr]*peerConn // by the peer's address, as calls have it
	strangers map[netip.Prefix]int
	churn     *churn
	sweepAt   int
	sweptAt   time.Time
}

// peerConn is one connection.
type peerConn struct {
	conn *net.TCPConn
	raw  syscall.RawConn
	host netip.Prefix
	// Guarded by connections.mu.
	timer  *time.Timer   // nil: it is no stranger's any more
	pace   *rate.Limiter // of calls; nil: a stranger's, or coderd's
	calls  int           // that are not authenticated, or of refused agents
	open   int           // calls of open services that go on
	taken  int           // of the address's allowance
	called bool          // there was one
	coderd bool          // one was coderd's
	// agents that made calls with tokens of their own, at most maxOwnAgents and one more.
	agents []agent.ID
}

// maxOwnAgents is the most agents that may call on a connection of their own. One with
// more is a proxy's: nobody is disconnected for what another agent does.
const maxOwnAgents = 8

// isShared reports whether the connection is a proxy's, or coderd's.
func (p *peerConn) isShared() bool { return len(p.agents) == 0 || len(p.agents) > maxOwnAgents }

// closed reports whether the service has closed the connection.
func (p *peerConn) closed() bool { return p.raw.Control(func(uintptr) {}) != nil }

func newConnections(o *Options, m *metrics, log *slog.Logger) *connections {
	c := &connections{
		limited:   m.limited,
		coderds:   newCoderds(log),
		log:       log,
		all:       make(map[*net.TCPAddr]*peerConn),
		strangers: make(map[netip.Prefix]int),
		churn:     newChurn(o.StrangerRate, o.StrangerBurst),
		sweepAt:   1024,
	}
	c.setLimits(o)
	return c
}

// setLimits makes the limits those of o. What there is above a lowered one stays.
func (c *connections) setLimits(o *Options) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.max, c.perAddress, c.maxCalls = o.MaxConnections, o.MaxStrangersPerAddress, o.MaxStrangerCalls
	c.timeout, c.callRate = o.AuthenticationTimeout, o.AgentCallRate
	c.churn.perSecond, c.churn.burst = float64(o.StrangerRate), float64(o.StrangerBurst)
	for _, p := range c.all {
		if p.pace != nil {
			p.pace.SetLimit(rate.Limit(c.callRate))
			p.pace.SetBurst(max(1, c.callRate/4))
		}
	}
}

// limitedListener closes connections beyond the limits.
type limitedListener struct {
	net.Listener
	connections *connections
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return conn, nil
		}
		refused, ok := l.connections.admit(tcp, time.Now())
		if ok {
			return conn, nil
		}
		_ = conn.Close()
		l.connections.logLimited("a connection was refused, as there are too many", tcp.RemoteAddr(), refused)
	}
}

// logLimited logs that a connection was ended by a limit, unless the limit is empty: one
// line a minute of an address, and of few addresses.
func (c *connections) logLimited(text string, from net.Addr, limit string) {
	addr, ok := from.(*net.TCPAddr)
	if !ok || limit == "" {
		return
	}
	host := hostOf(addr).Addr().String()
	if suppressed, ok := c.logged.allow(host, time.Now()); ok {
		c.log.Warn(text, "peer", host, "limit", limit, "suppressed", suppressed)
	}
}

// admit returns false if the connection is beyond a limit, and which one; empty: it is
// closed already.
func (c *connections) admit(conn *net.TCPConn, now time.Time) (refused string, ok bool) {
	addr, ok := conn.RemoteAddr().(*net.TCPAddr)
	raw, err := conn.SyscallConn()
	if !ok || err != nil {
		return "", false
	}
	host := hostOf(addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) >= min(c.max, c.sweepAt) || c.strangers[host] >= c.perAddress {
		c.sweepLocked(now)
	}
	switch {
	case len(c.all) >= c.max:
		c.limited.WithLabelValues(limitedConnections).Inc()
		return limitedConnections, false
	case c.strangers[host] >= c.perAddress:
		c.limited.WithLabelValues(limitedAddress).Inc()
		return limitedAddress, false
	case !c.churn.allow(host, now):
		c.limited.WithLabelValues(limitedRate).Inc()
		return limitedRate, false
	}
	p := &peerConn{conn: conn, raw: raw, host: host, taken: 1}
	p.timer = time.AfterFunc(c.timeout, func() { c.expire(addr, p) })
	c.all[addr] = p
	c.strangers[host]++
	return "", true
}

// hostOf returns the address, of IPv6 the network of one site.
func hostOf(addr *net.TCPAddr) netip.Prefix {
	ip := addr.AddrPort().Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // the bits are within the address
	return prefix
}

// sweepLocked forgets connections that are closed.
func (c *connections) sweepLocked(now time.Time) {
	if now.Sub(c.sweptAt) < sweepPause {
		return
	}
	c.sweptAt = now
	for addr, p := range c.all {
		if p.closed() {
			c.removeLocked(addr, p)
		}
	}
	c.sweepAt = max(1024, 2*len(c.all))
}

func (c *connections) removeLocked(addr *net.TCPAddr, p *peerConn) {
	if c.all[addr] != p {
		return
	}
	delete(c.all, addr)
	c.trustLocked(p)
}

// trustLocked removes the connection from those of strangers.
func (c *connections) trustLocked(p *peerConn) {
	if p.timer == nil {
		return
	}
	p.timer.Stop()
	p.timer = nil
	if c.strangers[p.host]--; c.strangers[p.host] == 0 {
		delete(c.strangers, p.host)
	}
}

// expire closes the connection of a stranger whose time is over.
func (c *connections) expire(addr *net.TCPAddr, p *peerConn) {
	c.logLimited("a connection was closed: it made no authenticated call in time", addr, c.closeExpired(addr, p))
}

// closeExpired is expire. It returns the limit, unless the connection is closed already.
func (c *connections) closeExpired(addr *net.TCPAddr, p *peerConn) (limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.timer == nil {
		return ""
	}
	if p.open > 0 {
		p.timer.Reset(c.timeout)
		return ""
	}
	if !p.closed() {
		limit = limitedStranger
		c.limited.WithLabelValues(limit).Inc()
	}
	_ = p.conn.Close()
	c.removeLocked(addr, p)
	return limit
}

// ofLocked returns the connection of a call; nil: it is not known.
func (c *connections) ofLocked(ctx context.Context) *peerConn {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	addr, ok := p.Addr.(*net.TCPAddr)
	if !ok {
		return nil
	}
	return c.all[addr]
}

// of returns the connection of a call; nil: it is not known any more.
func (c *connections) of(ctx context.Context) *peerConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ofLocked(ctx)
}

// tap is called for each call when gRPC has only its headers. It runs where the
// connection is read: a wait here stops the reading.
func (c *connections) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	if wait := c.countCall(ctx, time.Now()); wait > 0 {
		c.limited.WithLabelValues(limitedCallRate).Inc()
		time.Sleep(wait) // as long as one call takes at the rate
	}
	return ctx, nil
}

// countCall returns how long a call must wait.
func (c *connections) countCall(ctx context.Context, now time.Time) (wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch p := c.ofLocked(ctx); {
	case p == nil:
	case p.timer != nil:
		c.countCallLocked(p, now)
	case p.pace != nil:
		return p.pace.ReserveN(now, 1).DelayFrom(now)
	}
	return 0
}

// countCallLocked counts a call of a stranger, and closes the connection if it is
// one too many.
func (c *connections) countCallLocked(p *peerConn, now time.Time) {
	reason := ""
	switch p.calls++; {
	case p.calls > c.maxCalls:
		reason = limitedCalls
	case p.called && !c.churn.allow(p.host, now):
		reason = limitedRate
	case p.called:
		p.taken++
	}
	p.called = true // the first call goes with the connection
	if reason == "" {
		return
	}
	if p.conn.Close() == nil { // which ends the call, too
		c.limited.WithLabelValues(reason).Inc()
	}
}

// authenticated notes that the call has a credential: coderd's, which relays many
// agents, or an agent's.
func (c *connections) authenticated(ctx context.Context, who Caller) {
	if p := c.trust(ctx, who); p != nil {
		c.coderds.begin(p, who)
	}
}

// trust is authenticated. It returns the connection if the call is coderd's first there.
func (c *connections) trust(ctx context.Context, who Caller) (coderds *peerConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.ofLocked(ctx)
	if p == nil {
		return nil
	}
	if who.Token != "" && len(p.agents) <= maxOwnAgents && !slices.Contains(p.agents, who.Agent) {
		p.agents = append(p.agents, who.Agent)
	}
	if p.timer != nil {
		c.churn.refund(p.host, p.taken, time.Now())
		c.trustLocked(p)
		p.pace = rate.NewLimiter(rate.Limit(c.callRate), max(1, c.callRate/4))
	}
	if who.Token != "" {
		return nil
	}
	p.pace = nil
	if p.coderd {
		return nil
	}
	p.coderd = true
	return p
}

// turnedAway counts a call of an agent that is refused for a while as a stranger's, and
// takes it from the allowance of its address. A connection of the agent's own with too
// many such calls is closed; a new one is a stranger's until the agent may come.
func (c *connections) turnedAway(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.ofLocked(ctx)
	if p == nil || p.timer != nil || p.isShared() {
		return // tap has counted it, or others have the connection
	}
	p.calls++
	if p.calls <= c.maxCalls && c.churn.allow(p.host, time.Now()) {
		return
	}
	if p.conn.Close() == nil {
		c.limited.WithLabelValues(limitedTurnedAway).Inc()
	}
}

// isShared reports whether the connection is a proxy's, or coderd's.
func (c *connections) isShared(p *peerConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return p.isShared()
}

// openCall notes that a call of an open service begins. done is called at its end,
// with asked true if it had a request: then the stranger may go on.
func (c *connections) openCall(ctx context.Context) (done func(asked bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.ofLocked(ctx)
	if p == nil {
		return func(bool) {}
	}
	p.open++
	return func(asked bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		p.open--
		if asked && p.timer != nil {
			p.calls--
			p.timer.Reset(c.timeout)
		}
	}
}

// count returns the number of connections.
func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweepLocked(time.Now())
	return len(c.all)
}

// mostStrangers returns how many connections without an authenticated call the address has
// that has the most.
func (c *connections) mostStrangers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := 0
	for _, n := range c.strangers {
		most = max(most, n)
	}
	return most
}

// mostCalls returns how many calls that are not authenticated the connection has made that
// has made the most.
func (c *connections) mostCalls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := 0
	for _, p := range c.all {
		most = max(most, p.calls)
	}
	return most
}

// close forgets all connections, which are closed.
func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for addr, p := range c.all {
		c.removeLocked(addr, p)
	}
}
