package grpcserver

import (
	"log/slog"
	"sync"
	"time"
)

// coderds logs the connections of coderds, and of those who may only push or read, when they
// begin and end.
type coderds struct {
	log *slog.Logger

	mu sync.Mutex
	// open are the connections that were not found to be closed. Guarded by mu.
	open map[*peerConn]coderdConn
}

// coderdConn is a connection of a coderd.
type coderdConn struct {
	peer, credential string
	since            time.Time
}

// Credentials of coderds, as the log names them.
const (
	credentialCoderd   = "coderd"
	credentialPush     = "push"
	credentialOperator = "operator"
)

func newCoderds(log *slog.Logger) *coderds {
	return &coderds{log: log, open: make(map[*peerConn]coderdConn)}
}

// begin notes the first authenticated call on a connection.
func (c *coderds) begin(p *peerConn, who Caller) {
	conn := coderdConn{peer: p.host.Addr().String(), credential: credentialCoderd, since: time.Now()}
	switch {
	case who.IsPusher:
		conn.credential = credentialPush
	case who.IsOperator:
		conn.credential = credentialOperator
	}
	c.mu.Lock()
	c.open[p] = conn
	n := len(c.open)
	c.mu.Unlock()
	c.log.Info("coderd has connected", "peer", conn.peer, "credential", conn.credential, "connections", n)
}

// logEnded logs the connections that were closed since it was called last.
func (c *coderds) logEnded() {
	var ended []coderdConn
	c.mu.Lock()
	for p, conn := range c.open {
		if p.closed() {
			ended = append(ended, conn)
			delete(c.open, p)
		}
	}
	n := len(c.open)
	c.mu.Unlock()
	for _, conn := range ended {
		c.log.Info("a connection of coderd has ended", "peer", conn.peer, "credential", conn.credential,
			"lasted", time.Since(conn.since).Round(time.Second), "connections", n)
	}
}
