package proxy

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// idleBytes is the buffer of a direction that is mostly idle.
	idleBytes = 4 << 10
	// busyBytes is that of a direction which filled its buffer: what is buffered at most.
	busyBytes = 64 << 10
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
func (t *tunnel) CloseWrite() error {
	half, ok := t.ReadWriteCloser.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

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
		case n < idleBytes && busy != nil:
			busyBuffers.Put(busy)
			busy, buffer = nil, idle
		}
	}
}
