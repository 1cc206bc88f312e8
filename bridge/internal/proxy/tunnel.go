package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// idleBytes is the buffer of a direction that is mostly idle.
	idleBytes = 4 << 10
	// busyBytes is that of a direction which filled its buffer: what is buffered at most.
	busyBytes = 64 << 10
	// quietBytes at a time are too few for that one: a manifest leaves it at once.
	quietBytes = busyBytes / 4
)

// busyBuffers are those of directions that carry much at the moment.
var busyBuffers = sync.Pool{New: func() any {
	b := make([]byte, busyBytes)
	return &b
}}

// tunnel is an upgraded connection to coderd. httputil.ReverseProxy copies between it and
// the agent's by io.Copy, which calls WriteTo and ReadFrom.
type tunnel struct {
	io.ReadWriteCloser      // to coderd
	copy               Copy // nil: nobody decodes it
	metrics            *metrics
	close              func() // once it is closed
	once               sync.Once
}

// WriteTo passes on what coderd sends.
func (t *tunnel) WriteTo(agent io.Writer) (int64, error) {
	return t.pass(agent, t.ReadWriteCloser, false, &t.metrics.fromCoderd)
}

// ReadFrom passes on what the agent sends.
func (t *tunnel) ReadFrom(agent io.Reader) (int64, error) {
	return t.pass(t.ReadWriteCloser, agent, true, &t.metrics.fromAgent)
}

// CloseWrite ends what the agent sends.
func (t *tunnel) CloseWrite() error { return closeWrite(t.ReadWriteCloser) }

// closeWrite ends what is sent over a connection, if it can.
func closeWrite(conn io.Writer) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// earlyConn is a connection of which some bytes were read before.
type earlyConn struct {
	net.Conn
	early []byte
}

// Read implements io.Reader.
func (c *earlyConn) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// CloseWrite ends what coderd sends.
func (c *earlyConn) CloseWrite() error { return closeWrite(c.Conn) }

// Close closes the connection to coderd, after which that to the agent is closed, too.
func (t *tunnel) Close() error {
	err := t.ReadWriteCloser.Close()
	t.once.Do(t.close)
	return err
}

// pass passes bytes on until src ends. A copy is made before they are written, so it is
// there before the answer to them.
func (t *tunnel) pass(dst io.Writer, src io.Reader, fromAgent bool, m *direction) (written int64, err error) {
	idle := make([]byte, idleBytes)
	buffer := idle
	var busy *[]byte
	defer func() {
		if busy != nil {
			busyBuffers.Put(busy)
		}
	}()
	for {
		n, readErr := src.Read(buffer)
		if n > 0 {
			began := time.Now()
			if t.copy != nil {
				t.copy.Add(fromAgent, buffer[:n])
			}
			w, writeErr := dst.Write(buffer[:n])
			m.latency.Observe(time.Since(began).Seconds())
			m.bytes.Add(float64(w))
			written += int64(w)
			clear(buffer[:n]) // nothing that passed stays
			if writeErr != nil {
				return written, writeErr
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return written, nil
		case readErr != nil:
			return written, readErr
		case n == len(buffer) && busy == nil:
			busy, _ = busyBuffers.Get().(*[]byte)
			buffer = *busy
		case n < quietBytes && busy != nil:
			busyBuffers.Put(busy)
			busy, buffer = nil, idle
		}
	}
}
