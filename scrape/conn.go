package scrape

import (
	"context"
	"net"
	"net/http"
)

// maxBufferedBytes bounds what a connection buffers. net/http buffers as much of a
// response before it writes.
const maxBufferedBytes = 4 << 10

// GatherWrites makes server write scrapes in fewer and larger writes. The server must
// not run yet. It is to serve the returned listener in place of lis.
//
// net/http writes each chunk in two parts, the first one of 4 KB. A client on the same
// machine wakes up for both. GatherWrites joins them. It changes neither TLS, which
// writes small records anyway, nor what other handlers write.
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

// gatheringConn buffers small writes while larger ones are to follow. Only the
// goroutine that serves the connection writes to it.
type gatheringConn struct {
	*net.TCPConn

	buffering bool
	buffered  []byte
	// buffers and both are used by one write. Here they are allocated once.
	buffers net.Buffers
	both    [2][]byte
}

// NetConn returns the connection below, as that of tls.Conn does.
func (c *gatheringConn) NetConn() net.Conn { return c.TCPConn }

// connOf returns the connection of a request if it gathers writes, else nil. It is nil
// for HTTP/2, where another goroutine writes.
func connOf(r *http.Request) *gatheringConn {
	if r.ProtoMajor != 1 {
		return nil
	}
	c, _ := r.Context().Value(connKey{}).(*gatheringConn)
	return c
}

// startBuffering buffers small writes until the next larger one, or until flush.
func (c *gatheringConn) startBuffering() {
	if c != nil {
		c.buffering = true
	}
}

// flush writes what is buffered.
func (c *gatheringConn) flush() error {
	if c == nil {
		return nil
	}
	c.buffering = false
	if len(c.buffered) == 0 {
		return nil
	}
	_, err := c.TCPConn.Write(c.buffered)
	c.buffered = c.buffered[:0]
	return err
}

// Write implements net.Conn.
func (c *gatheringConn) Write(p []byte) (int, error) {
	if c.buffering && len(c.buffered)+len(p) <= maxBufferedBytes {
		c.buffered = append(c.buffered, p...)
		return len(p), nil
	}
	if len(c.buffered) == 0 {
		return c.TCPConn.Write(p)
	}
	c.both = [2][]byte{c.buffered, p}
	c.buffers = c.both[:]
	n, err := c.buffers.WriteTo(c.TCPConn) // one system call
	written := max(0, int(n)-len(c.buffered))
	c.buffers, c.both, c.buffered = nil, [2][]byte{}, c.buffered[:0]
	return written, err
}
