package pubsub

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy stands between an engine and its server. It can go silent: it forwards nothing
// and closes nothing, like a network that drops packets.
type proxy struct {
	listener net.Listener
	server   string
	serving  sync.WaitGroup

	mu       sync.Mutex
	changed  sync.Cond // of accepted and open
	silent   bool
	conns    []net.Conn
	accepted int // connections so far
	open     int // of them, those that the client has not closed
}

func newProxy(t testing.TB, server string) *proxy {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: listener, server: server}
	p.changed.L = &p.mu
	p.serving.Go(p.serve)
	t.Cleanup(func() {
		listener.Close()
		p.heal()
		p.serving.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.accepted++
		p.open++
		p.changed.Broadcast()
		p.mu.Unlock()
		p.serving.Go(func() { p.pass(client, server) })
		p.serving.Go(func() {
			p.pass(server, client)
			p.mu.Lock()
			p.open--
			p.changed.Broadcast()
			p.mu.Unlock()
		})
	}
}

func (p *proxy) pass(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		silent := p.silent
		p.mu.Unlock()
		if err != nil {
			return
		}
		if silent {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// silence lasts until heal, also for connections that are made meanwhile.
func (p *proxy) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = true
}

// connections returns how many there were.
func (p *proxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// waitAccepted waits until there were n connections.
func (p *proxy) waitAccepted(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.accepted < n {
		p.changed.Wait()
	}
}

// waitClosed waits until all connections are closed.
func (p *proxy) waitClosed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.open > 0 {
		p.changed.Wait()
	}
}

// heal closes what was silent; new connections are passed on.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = false
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}
