package handshake

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"

	"github.com/coder/agentstatsd/internal/recurring"
)

// Reasons of failures, as the counter labels them.
const (
	failedClosed      = "closed"      // the client closed the connection
	failedLimit       = "limit"       // the service did, for one of its limits or times
	failedNotTLS      = "not_tls"     // the client does not speak TLS
	failedRejected    = "rejected"    // the client refused, as a rule the certificate
	failedCertificate = "certificate" // the client's certificate is refused, or it has none
	failedUnsupported = "unsupported" // both have no version, cipher or protocol in common
	failedOther       = "other"
)

// failureTexts are parts of errors of crypto/tls, and of those around it, by reason. The
// first that fits counts. net/http has nothing but texts.
var failureTexts = []struct{ reason, part string }{
	{failedRejected, "remote error: "},
	{failedLimit, errNoRoom.Error()},
	{failedLimit, net.ErrClosed.Error()},
	{failedLimit, "i/o timeout"},
	{failedLimit, context.Canceled.Error()},
	{failedLimit, context.DeadlineExceeded.Error()},
	{failedClosed, io.EOF.Error()},
	{failedClosed, "connection reset by peer"},
	{failedClosed, "broken pipe"},
	{failedClosed, io.ErrClosedPipe.Error()},
	{failedNotTLS, "does not look like a TLS handshake"},
	{failedNotTLS, "sent an HTTP request to an HTTPS server"},
	{failedNotTLS, "unsupported SSLv2 handshake"},
	{failedNotTLS, "oversized record"},
	{failedCertificate, "client certificate"},
	{failedCertificate, "client didn't provide a certificate"},
	{failedCertificate, "failed to verify certificate"},
	{failedUnsupported, "unsupported"},
	{failedUnsupported, "no cipher suite supported"},
	{failedUnsupported, "missing selected ALPN property"},
}

func failureOf(text string) string {
	for _, f := range failureTexts {
		if strings.Contains(text, f.part) {
			return f.reason
		}
	}
	return failedOther
}

// Failed notes that a handshake with the peer failed: it is counted by its reason. The log
// has a line a minute of each reason. Of clients that closed the connection that is for
// debugging: load balancers do so to see whether the service listens.
func (g *Gate) Failed(peer net.Addr, err error) { g.failed(hostOf(peer.String()), err) }

// FailedHTTP is Failed for a line of net/http's error log. It returns false if the line
// is about something else, or g is nil.
func (g *Gate) FailedHTTP(line string) bool {
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), "http: TLS handshake error from ")
	if !ok || g == nil {
		return false
	}
	address, why, ok := strings.Cut(rest, ": ")
	if ok {
		g.failed(hostOf(address), errors.New(why))
	}
	return ok
}

func (g *Gate) failed(host string, err error) {
	reason := failureOf(err.Error())
	g.metrics.failed.WithLabelValues(reason).Inc()
	level := slog.LevelWarn
	if reason == failedClosed {
		level = slog.LevelDebug
	}
	g.failures[reason].Log(context.Background(), g.log, level, "handshakes", 1, "TLS handshakes failed",
		"listener", g.listener, "reason", reason, "peer", host, "error", err)
}

// newFailures returns what counts failures for the log, by reason.
func newFailures() map[string]*recurring.Events {
	failures := make(map[string]*recurring.Events)
	for _, reason := range failureReasons {
		failures[reason] = new(recurring.Events)
	}
	return failures
}

// failureReasons are all of them.
var failureReasons = []string{
	failedClosed, failedLimit, failedNotTLS, failedRejected, failedCertificate, failedUnsupported, failedOther,
}

// hostOf returns the host of an address host:port.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
