package integration

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A process that may open few files, and has clients that hold connections, says so in one
// line, and in its metrics once it can be scraped.
func TestDescriptorsAreExhausted(t *testing.T) {
	beside(t)
	s := newService(t)
	s.files = 64
	s.start(t)
	var held []net.Conn
	for range 100 {
		conn, err := net.Dial("tcp", s.httpAddr) // the kernel makes it
		require.NoError(t, err)
		held = append(held, conn)
	}
	const line = `level=WARN msg="connections cannot be accepted, trying again" listener=prometheus`
	awaitLine(t, s, line)
	for _, conn := range held {
		require.NoError(t, conn.Close())
	}
	_, body := s.scrape(t, "/metrics")
	require.Contains(t, string(body), `agentstatsd_accept_errors_total{listener="prometheus",reason="descriptors"} `)
	require.NotContains(t, string(body), `agentstatsd_accept_errors_total{listener="prometheus",reason="descriptors"} 0`)
	awaitLine(t, s, `level=INFO msg="connections are accepted again" listener=prometheus`)
	log := s.log.tail(1 << 20)
	require.Equal(t, 1, strings.Count(log, line), log)
	require.Contains(t, log, "reason=descriptors open_files_limit=64")
}

// awaitLine waits until the log of the service has a text.
func awaitLine(t *testing.T, s *service, text string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(s.log.tail(1<<20), text) {
		require.True(t, time.Now().Before(deadline), "the log has no %q", text)
		time.Sleep(10 * time.Millisecond)
	}
}
