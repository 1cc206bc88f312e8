package web

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/coder/agentstatsd/internal/bubble"
)

// framer speaks HTTP/2 by the frame, after a handshake, to a listener with TLS.
func framer(t *testing.T, lis *pipes, conf *tls.Config) (*http2.Framer, *tls.Conn) {
	t.Helper()
	conf = conf.Clone()
	conf.ServerName, conf.NextProtos = "service", []string{"h2"}
	c := tls.Client(lis.dial("10.0.0.2:1"), conf)
	require.NoError(t, c.Handshake())
	require.Equal(t, "h2", c.ConnectionState().NegotiatedProtocol)
	go func() { _, _ = io.Copy(io.Discard, c) }()
	_, err := io.WriteString(c, http2.ClientPreface)
	require.NoError(t, err)
	f := http2.NewFramer(c, nil)
	require.NoError(t, f.WriteSettings())
	return f, c
}

func get(fields ...string) []byte {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "service"}, {Name: ":path", Value: "/metrics"},
	} {
		_ = enc.WriteField(f)
	}
	for _, name := range fields {
		_ = enc.WriteField(hpack.HeaderField{Name: name, Value: "x"})
	}
	return block.Bytes()
}

// Streams that are opened and reset as fast as can be occupy no more handlers than
// there may be streams, and keep no scraper out.
func TestRapidReset(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		conf := &tls.Config{RootCAs: pair(t, dir, 1)}
		var running, peak atomic.Int64
		block := make(chan struct{})
		inner := scrapesOf(t, large(), 4)
		lis := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.RemoteAddr == "10.0.0.2:1" {
				peak.Store(max(peak.Load(), running.Add(1)))
				<-block
				running.Add(-1)
				return
			}
			inner.ServeHTTP(w, r)
		}), Options{Config: load(t, configFile(t, dir, withTLS), io.Discard)}, nil)
		f, c := framer(t, lis, conf)
		for id := uint32(1); id < 20_000; id += 2 {
			if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: get(), EndStream: true, EndHeaders: true}) != nil ||
				f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				break
			}
		}
		time.Sleep(5 * time.Second)
		require.LessOrEqual(t, peak.Load(), int64(maxStreams))
		require.Error(t, f.WritePing(false, [8]byte{}), "its connection is closed")
		good := lis.client("10.0.0.1:1", conf)
		status, size := readScrape(t, good, "https")
		require.Equal(t, []int{200, largeBytes}, []int{status, size})
		close(block)
		c.Close()
		good.CloseIdleConnections()
		time.Sleep(time.Minute)
	})
}

// Headers without an end close the connection, whichever frames they come in.
func TestEndlessHeaders(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		conf := &tls.Config{RootCAs: pair(t, dir, 1)}
		lis := start(t, hello, Options{Config: load(t, configFile(t, dir, withTLS), io.Discard)}, nil)
		f, c := framer(t, lis, conf)
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get(), EndStream: true})
		var bytes int
		for i := 0; err == nil && bytes < 64<<20; i++ {
			var names []string
			for j := range 300 {
				names = append(names, fmt.Sprintf("x-%d-%d", i, j))
			}
			block := get(names...)
			bytes += len(block)
			err = f.WriteContinuation(1, false, block)
		}
		require.Error(t, err)
		require.Less(t, bytes, 1<<20)
		c.Close()
		time.Sleep(time.Minute)
	})
}
