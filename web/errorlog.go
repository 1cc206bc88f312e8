package web

import (
	"context"
	"log"
	"log/slog"
	"net"
	"strings"

	"github.com/coder/agentstatsd/internal/handshake"
	"github.com/coder/agentstatsd/internal/recurring"
)

// errorLog logs net/http's messages with the peer as an attribute, so that lines
// about one peer can be limited. TLS handshakes that failed are the gate's to log.
type errorLog struct {
	log  *slog.Logger
	gate *handshake.Gate // nil: plaintext
	// What the log has of panics, and of other messages.
	panics, others recurring.Events
}

func newErrorLog(l *slog.Logger, gate *handshake.Gate) *log.Logger {
	return log.New(&errorLog{log: l, gate: gate}, "", 0)
}

// Write implements io.Writer for log.Logger: one call for each line.
func (e *errorLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if e.gate.FailedHTTP(text) {
		return len(line), nil
	}
	if peer, why, ok := cutPeer(text, "http: panic serving "); ok {
		e.panics.Log(context.Background(), e.log, slog.LevelError, "panics", 1, "an HTTP handler panicked", "peer", peer, "panic", why)
	} else {
		e.others.Log(context.Background(), e.log, slog.LevelWarn, "errors", 1, "HTTP server", "error", text)
	}
	return len(line), nil
}

// cutPeer returns the host in a text "PREFIX host:port: why", and why.
func cutPeer(text, prefix string) (host, why string, ok bool) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok {
		return "", "", false
	}
	address, why, ok := strings.Cut(rest, ": ")
	if !ok {
		return "", "", false
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host, why, true
	}
	return address, why, true
}
