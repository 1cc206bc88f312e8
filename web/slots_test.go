package web

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// Sixteen clients of the scraper's own address send requests and read nothing, again
// and again. Each scrape of the scraper is answered, over one connection and over new
// ones.
func TestScrapesAreAnsweredBesideSlowReaders(t *testing.T) {
	for keepAlive, slots := range map[bool]int{true: 4, false: 16} {
		t.Run(fmt.Sprint("keepAlive ", keepAlive), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				scrapes := scrapesOf(t, large(), slots)
				lis := start(t, scrapes, Options{}, nil)
				good := lis.client("10.0.0.1:1", nil)
				good.Transport.(*http.Transport).DisableKeepAlives = !keepAlive
				status, size := readScrape(t, good, "http")
				require.Equal(t, []int{200, largeBytes}, []int{status, size})

				var stop atomic.Bool
				var attack sync.WaitGroup
				for i := range 16 {
					attack.Go(func() {
						for !stop.Load() {
							c := lis.dial(fmt.Sprintf("10.0.0.1:%d", 100+i))
							_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
							time.Sleep(20 * time.Second)
							c.Close()
						}
					})
				}
				for range 40 {
					time.Sleep(15 * time.Second)
					began := time.Now()
					status, size := readScrape(t, good, "http")
					require.Equal(t, []int{200, largeBytes}, []int{status, size})
					require.Less(t, time.Since(began), lineWait)
				}
				stop.Store(true)
				attack.Wait()
				good.CloseIdleConnections()
				require.Positive(t, testutil.ToFloat64(scrapes.metrics.cut))
				time.Sleep(time.Minute)
			})
		})
	}
}

// A client that is known, and whose connection stalls, is no longer known.
func TestTrustIsLostByAStall(t *testing.T) {
	s := scrapesOf(t, large(), 2)
	trusted := func(c *conn) bool {
		since, _ := s.trustedSince(c)
		return !since.IsZero()
	}
	c := &conn{address: address(1)}
	whole := &response{}
	s.updateTrust(c, whole, true)
	require.True(t, trusted(c))
	require.True(t, trusted(&conn{address: address(1)}), "its address is known too")
	require.False(t, trusted(&conn{address: address(2)}))
	cut := &response{}
	cut.cut.Store(true)
	s.updateTrust(c, cut, false)
	require.False(t, trusted(c))
	slow := &response{}
	slow.blocked.Store(int64(10 * time.Second))
	s.updateTrust(c, slow, true)
	require.False(t, trusted(c), "slowly is not well")
	s.updateTrust(c, whole, false)
	require.False(t, trusted(c))
	for i := range 2 * maxTrusted {
		s.updateTrust(&conn{address: address(i)}, whole, true)
	}
	require.Len(t, s.addresses, maxTrusted)
}

// What waits too long is answered 503, at half of its scraper's timeout.
func TestBusy(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		block := make(chan struct{})
		s := scrapesOf(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }), 1)
		go s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
		synctest.Wait()
		start := time.Now()
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", "3")
		s.ServeHTTP(w, r)
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "1", w.Header().Get("Retry-After"))
		require.Equal(t, 1500*time.Millisecond, time.Since(start))
		require.InDelta(t, 1, testutil.ToFloat64(s.metrics.refused), 0)
		close(block)
	})
	for header, want := range map[string]time.Duration{
		"": lineWait, "10": lineWait, "1": time.Second / 2, "-1": lineWait, "NaN": lineWait, "1e300": lineWait, "x": lineWait, "0": lineWait,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", header)
		require.Equal(t, want, scrapeWait(r), header)
	}
}

// A client of HTTP/1.0 can distinguish a scrape that was cut from a whole one.
func TestHTTP10(t *testing.T) {
	var size atomic.Int64
	var fail atomic.Bool
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := strings.Repeat("x", int(size.Load()))
		_, _ = io.WriteString(w, text)
		if fail.Load() {
			panic(http.ErrAbortHandler)
		}
		_ = http.NewResponseController(w).Flush()
	})
	s, err := NewServer(scrapesOf(t, next, 2), Options{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- s.Serve(t.Context(), lis) }()
	defer func() {
		require.NoError(t, s.http.Close())
		<-done
	}()
	ask := func() (*http.Response, string, error) {
		c, err := net.Dial("tcp", lis.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n")
		require.NoError(t, err)
		text, err := io.ReadAll(c)
		head, body, _ := strings.Cut(string(text), "\r\n\r\n")
		_ = head
		resp := &http.Response{Header: http.Header{}}
		for line := range strings.SplitSeq(head, "\r\n") {
			if k, v, ok := strings.Cut(line, ": "); ok {
				resp.Header.Add(k, v)
			}
		}
		return resp, body, err
	}
	for _, n := range []int{1, 5000, knownLength} {
		size.Store(int64(n))
		resp, body, err := ask()
		require.NoError(t, err)
		require.Len(t, body, n)
		require.Equal(t, fmt.Sprint(n), resp.Header.Get("Content-Length"))
	}
	size.Store(knownLength + 1)
	resp, body, err := ask()
	require.NoError(t, err)
	require.Len(t, body, knownLength+1)
	require.Empty(t, resp.Header.Get("Content-Length"))

	fail.Store(true)
	_, _, err = ask()
	require.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrClosed), "got %v", err)
}
