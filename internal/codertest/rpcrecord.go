package codertest

import (
	"bytes"
	"net"
	"sync"
)

// Part is what one side sent, in one write or one read.
type Part struct {
	FromAgent bool
	Bytes     []byte
}

// Recorder records what an agent's connection carries after the handshake, so that what the
// agent sent is before coderd's answer to it.
type Recorder struct {
	mu            sync.Mutex
	parts         []Part
	agent, coderd handshake
}

// handshake is what of a side's handshake has come.
type handshake struct {
	head []byte
	done bool
}

// after returns what of b is behind the handshake.
func (h *handshake) after(b []byte) []byte {
	if h.done {
		return b
	}
	h.head = append(h.head, b...)
	_, rest, found := bytes.Cut(h.head, []byte("\r\n\r\n"))
	h.done = found
	return rest
}

// Wrap is for DialOptions.Wrap.
func (r *Recorder) Wrap(conn net.Conn) net.Conn { return &recorded{conn, r} }

// Parts returns what was recorded.
func (r *Recorder) Parts() []Part {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Part(nil), r.parts...)
}

func (r *Recorder) add(fromAgent bool, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	side := &r.coderd
	if fromAgent {
		side = &r.agent
	}
	if b = side.after(b); len(b) > 0 {
		r.parts = append(r.parts, Part{fromAgent, bytes.Clone(b)})
	}
}

type recorded struct {
	net.Conn
	recorder *Recorder
}

// Read implements net.Conn.
func (c *recorded) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.recorder.add(false, b[:n])
	return n, err
}

// Write implements net.Conn.
func (c *recorded) Write(b []byte) (int, error) {
	c.recorder.add(true, b)
	return c.Conn.Write(b)
}
