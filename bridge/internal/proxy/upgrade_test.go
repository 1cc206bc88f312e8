package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// DERP upgrades a connection to no WebSocket. Where a proxy takes all requests, it passes
// that on, too, with the Host of a wildcard name, and nobody decodes it.
func TestDERPIsPassedOn(t *testing.T) {
	hosts := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		// It sends at once, and echoes what it gets.
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\nkey")
		_, _ = io.Copy(conn, buffered)
	}))
	defer server.Close()
	b := start(t, server.URL)
	conn, err := net.Dial("tcp", b.addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprint(conn, "GET /derp HTTP/1.1\r\nHost: 8080--main--ws1--ada.coder.example.com\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
	require.NoError(t, err)
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	require.NoError(t, err)
	_ = resp.Body.Close()
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	require.Equal(t, "DERP", resp.Header.Get("Upgrade"))
	require.Equal(t, "8080--main--ws1--ada.coder.example.com", <-hosts)
	_, err = conn.Write([]byte("\x00\x01frames"))
	require.NoError(t, err)
	got := make([]byte, len("key\x00\x01frames"))
	_, err = io.ReadFull(reader, got)
	require.NoError(t, err)
	require.Equal(t, "key\x00\x01frames", string(got))
	require.Empty(t, b.opened)
	require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.connections.WithLabelValues(kindOther)))
}
