package scrape

import (
	"context"
	"net"
	"net/http"
)

// heldBytes are the most that a connection holds: what net/http gathers of a
// response before it writes.
const heldBytes = 4 << 10

// GatherWrites has server, which is not running yet, write scrapes in fewer and
// larger pieces to the connections of the listener that it returns, which takes
// the place of lis. Without it a scrape is the same, and takes longer: net/http
// writes each chunk in two pieces, the first one of 4 KB, and a client on the same
// machine is woken up for both. TLS, which writes in small pieces anyway, and what
// other handlers write are not touched.
func GatherWrites(server *http.Server, lis net.Listener) net.Listener {
	before := server.ConnContext
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if before != nil {
			ctx = before(ctx, c)
		}
		if c, ok := c.(*gatheringConn); ok {
			ctx = context.WithValue(ctx, connKey{}, c)
		}
		return ctx
	}
	return gatheringListener{lis}
}

type connKey struct{}

type gatheringListener struct{ net.Listener }

// Accept implements net.Listener.
func (l gatheringListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok && err == nil {
		return &gatheringConn{TCPConn: tcp}, nil
	}
	return c, err
}

// gatheringConn holds small writes back while larger ones are to follow. Only the
// goroutine that serves the connection writes to it.
type gatheringConn struct {
	*net.TCPConn

	holding bool
	held    []byte
	// pieces and both are those of one write, here so that they are not allocated.
	pieces net.Buffers
	both   [2][]byte
}

// NetConn returns the connection below, as that of tls.Conn does.
func (c *gatheringConn) NetConn() net.Conn { return c.TCPConn }

// connOf returns the connection of a request if it gathers what is written to it,
// else nil. To one of HTTP/2 another goroutine writes.
func connOf(r *http.Request) *gatheringConn {
	if r.ProtoMajor != 1 {
		return nil
	}
	c, _ := r.Context().Value(connKey{}).(*gatheringConn)
	return c
}

// hold has small writes held back until the next larger one, or until release.
func (c *gatheringConn) hold() {
	if c != nil {
		c.holding = true
	}
}

// release writes what is held.
func (c *gatheringConn) release() error {
	if c == nil {
		return nil
	}
	c.holding = false
	if len(c.held) == 0 {
		return nil
	}
	_, err := c.TCPConn.Write(c.held)
	c.held = c.held[:0]
	return err
}

// Write implements net.Conn.
func (c *gatheringConn) Write(p []byte) (int, error) {
	if c.holding && len(c.held)+len(p) <= heldBytes {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	if len(c.held) == 0 {
		return c.TCPConn.Write(p)
	}
	c.both = [2][]byte{c.held, p}
	c.pieces = c.both[:]
	n, err := c.pieces.WriteTo(c.TCPConn) // one system call
	written := max(0, int(n)-len(c.held))
	c.pieces, c.both, c.held = nil, [2][]byte{}, c.held[:0]
	return written, err
}
