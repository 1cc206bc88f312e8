package integration

import (
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fault is what is wrong with a network.
type fault int

const (
	noFault fault = iota
	// resets breaks each connection at once, also new ones.
	resets
	// swallows lets connections stand and be made, and nothing pass.
	swallows
	// delays lets all pass proxyDelay later.
	delays
)

// proxyDelay is the latency of delays, in each direction.
const proxyDelay = 150 * time.Millisecond

// proxy stands between a client and a server, and can be faulty.
type proxy struct {
	lis    net.Listener
	target string

	mu sync.Mutex
	// Guarded by mu.
	fault   fault
	changed chan struct{} // closed when fault changes
	conns   map[net.Conn]struct{}
}

// newProxy stands before an address until the test ends.
func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{lis: lis, target: target, changed: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		require.NoError(t, lis.Close())
		p.set(resets)
		serving.Wait()
	})
	return p
}

// before returns the URL of a server with the proxy's address in place of its own.
func (p *proxy) before(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	require.NoError(t, err)
	u.Host = p.lis.Addr().String()
	return u.String()
}

// set makes the network faulty from now on.
func (p *proxy) set(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
	if f == resets {
		for conn := range p.conns {
			abort(conn)
		}
	}
}

func (p *proxy) state() (fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault, p.changed
}

// abort has the peer see a reset.
func abort(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// serve carries one connection.
func (p *proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		abort(client)
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	if p.fault == resets {
		abort(client)
		abort(server)
	}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.carry(server, client) })
	both.Go(func() { p.carry(client, server) })
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// carry moves bytes until one of the two is closed; then the other is too.
func (p *proxy) carry(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		for {
			f, changed := p.state()
			if f == delays {
				time.Sleep(proxyDelay)
			}
			if f != swallows {
				break
			}
			<-changed
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				abort(to)
			}
			return
		}
	}
}
