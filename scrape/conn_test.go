package scrape

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gathering returns a connection that gathers, and the other end of it.
func gathering(t *testing.T) (*gatheringConn, net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer lis.Close()
	peer, err := net.Dial("tcp", lis.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { peer.Close() })
	c, err := gatheringListener{lis}.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*gatheringConn), peer
}

// arrived returns the next n bytes.
func arrived(t *testing.T, peer net.Conn, n int) string {
	t.Helper()
	require.NoError(t, peer.SetReadDeadline(time.Now().Add(10*time.Second)))
	data := make([]byte, n)
	_, err := io.ReadFull(peer, data)
	require.NoError(t, err)
	return string(data)
}

func TestGatheringConn(t *testing.T) {
	c, peer := gathering(t)
	write := func(p string) {
		n, err := io.WriteString(c, p)
		require.NoError(t, err)
		require.Equal(t, len(p), n)
	}
	write("at once ")
	require.Equal(t, "at once ", arrived(t, peer, 8))

	large := string(bytes.Repeat([]byte("x"), maxBufferedBytes))
	c.startBuffering()
	write("held, ")
	write("with ")
	require.Equal(t, "held, with ", string(c.buffered))
	write(large)
	require.Empty(t, c.buffered)
	require.Equal(t, "held, with "+large, arrived(t, peer, 11+maxBufferedBytes))
	write(large)
	require.Len(t, c.buffered, maxBufferedBytes)
	write("more")
	write("end")
	require.NoError(t, c.flush())
	require.Equal(t, large+"moreend", arrived(t, peer, maxBufferedBytes+7))
	require.NoError(t, c.flush(), "nothing is buffered")

	// What could not be written is not counted as written.
	c.startBuffering()
	write("lost")
	require.NoError(t, c.Close())
	n, err := io.WriteString(c, large)
	require.ErrorIs(t, err, net.ErrClosed)
	require.Zero(t, n)
	c.startBuffering()
	write("lost")
	require.ErrorIs(t, c.flush(), net.ErrClosed)
	require.NoError(t, c.flush(), "it is returned once")
}

// A scrape over a server whose writes are gathered is the same as without, over
// one connection after the other requests too.
func TestGatherWrites(t *testing.T) {
	big := &part{text: bytes.Repeat(benchText(2000), 5)}
	serve := func(gather bool) (url string, conns chan *gatheringConn) {
		scrape := newHandler(t, own(), Options{}, big)
		conns = make(chan *gatheringConn, 10)
		var protocols http.Protocols
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		server := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conns <- connOf(r)
			scrape.ServeHTTP(w, r)
		})}
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		url = "http://" + lis.Addr().String()
		if gather {
			lis = GatherWrites(server, lis)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(lis)
		}()
		t.Cleanup(func() {
			require.NoError(t, server.Close())
			<-done
		})
		return url, conns
	}
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	fetch := func(url, method string) []byte {
		r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		require.NoError(t, err)
		resp, err := transport.RoundTrip(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return body
	}
	plain, plainConns := serve(false)
	require.True(t, bytes.HasSuffix(fetch(plain, http.MethodGet), big.text))
	require.Nil(t, <-plainConns)

	gathered, conns := serve(true)
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodGet} {
		got := fetch(gathered, method)
		require.Equal(t, method == http.MethodGet, bytes.HasSuffix(got, big.text), method)
	}
	var both http.Protocols
	both.SetUnencryptedHTTP2(true)
	second := &http.Transport{Protocols: &both}
	defer second.CloseIdleConnections()
	transport = second
	require.True(t, bytes.HasSuffix(fetch(gathered, http.MethodGet), big.text))

	first := <-conns
	require.NotNil(t, first)
	for range 3 {
		require.Same(t, first, <-conns, "one connection")
	}
	require.Nil(t, <-conns, "HTTP/2")
}
