package scrape

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bench/load"
)

func TestCountsOfAgentstatsd(t *testing.T) {
	const agents = 3
	agg, handler, err := NewAggregator(agents)
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	defer server.Close()
	client, addr := NewClient(), server.Listener.Addr().String()
	for round := range 3 {
		require.NoError(t, Update(agg, agents, 1+round))
		for _, ask := range Asks {
			n, err := client.Count(t.Context(), addr, ask, filepath.Join(t.TempDir(), "answer"), load.Families())
			require.NoError(t, err, ask)
			require.Equal(t, agents*load.PerAgent, n, ask)
		}
	}
}

func TestCountText(t *testing.T) {
	text := "# TYPE a gauge\na 1\na{x=\"y\"} 2\n# TYPE b counter\nb 3\n"
	n, err := countText([]byte(text), contentTypes[Text], map[string]bool{"a": true})
	require.NoError(t, err)
	require.Equal(t, 2, n)
	_, err = countText([]byte("a{ 1\n"), contentTypes[Text], map[string]bool{"a": true})
	require.ErrorContains(t, err, "parse a scrape")
}

func TestClientRefuses(t *testing.T) {
	chunked := func(w http.ResponseWriter) { w.(http.Flusher).Flush() }
	for name, c := range map[string]struct {
		serve func(w http.ResponseWriter)
		ask   Ask
		want  string
	}{
		"a status":         {func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }, Ask{Format: Text}, "want status 200"},
		"no compression":   {func(w http.ResponseWriter) { _, _ = w.Write([]byte("a 1\n")) }, Ask{Format: Text, Gzip: true}, "headers"},
		"another format":   {func(w http.ResponseWriter) { _, _ = w.Write([]byte("a 1\n")) }, Ask{Format: Protobuf}, "headers"},
		"a body cut short": {func(w http.ResponseWriter) { chunked(w); panic(http.ErrAbortHandler) }, Ask{Format: Text}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { c.serve(w) }))
			defer server.Close()
			_, err := NewClient().Scrape(t.Context(), server.Listener.Addr().String(), c.ask, nil)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestClientReadsBothKindsOfBodies(t *testing.T) {
	for _, size := range []int{0, 10, 3 << 20} {
		for _, known := range []bool{false, true} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if known {
					w.Header().Set("Content-Length", fmt.Sprint(size))
				}
				_, _ = w.Write([]byte(strings.Repeat("x", size)))
				if !known {
					w.(http.Flusher).Flush()
				}
			}))
			seen, err := NewClient().Scrape(t.Context(), server.Listener.Addr().String(), Ask{Format: Text}, nil)
			server.Close()
			require.NoError(t, err, "%d bytes, length known: %v", size, known)
			require.GreaterOrEqual(t, seen.Bytes, int64(size))
			require.GreaterOrEqual(t, seen.Total, seen.FirstByte)
		}
	}
}

func TestLastBytes(t *testing.T) {
	var last []byte
	for _, part := range []string{"", "abc", "\r\n0", "\r\n", "\r", "\n"} {
		last = lastBytes(last, []byte(part))
	}
	require.Equal(t, string(chunkedEnd), string(last))
}
