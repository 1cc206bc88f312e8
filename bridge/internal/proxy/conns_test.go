package proxy

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
)

func (b *bridge) refusedConns(outcome string) int {
	return int(testutil.ToFloat64(b.metrics.refused.WithLabelValues(outcome)))
}

func (b *bridge) untilServing(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		b.conns.mu.Lock()
		defer b.conns.mu.Unlock()
		return b.conns.serving == n
	}, 20*time.Second, time.Millisecond)
}

// Agents beyond the limit are answered that there are too many, until one has gone.
func TestConnectionsAreBounded(t *testing.T) {
	_, coderd := startCoderd(t)
	b := startWith(t, coderd.URL, Options{MaxConnections: 2})
	dial := func() (*codertest.Session, error) {
		return codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{})
	}
	first, err := dial()
	require.NoError(t, err)
	second, err := dial()
	require.NoError(t, err)
	defer second.Close()
	require.True(t, b.FullAt().IsZero())
	_, err = dial()
	require.ErrorContains(t, err, "status 503")
	resp, err := http.Get("http://" + b.addr + "/other")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "10", resp.Header.Get("Retry-After"))
	require.True(t, resp.Close)
	require.Contains(t, string(body), "serves as many requests as --max-agent-connections allows")
	require.Equal(t, 2, b.refusedConns(refusedAnswered))
	require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.handshakes.WithLabelValues("503")))
	require.False(t, b.FullAt().IsZero())

	// The two go on, and make room at their ends.
	_, err = second.Call(t.Context(), codertest.GetManifest, nil)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	b.untilServing(t, 1)
	third, err := dial()
	require.NoError(t, err)
	require.NoError(t, third.Close())
	b.untilServing(t, 1)
	require.Eventually(t, func() bool { // those that were refused end beside
		b.conns.mu.Lock()
		defer b.conns.mu.Unlock()
		return len(b.conns.open) == 1
	}, 20*time.Second, time.Millisecond)
}

// A raised limit counts at once; a lowered one ends no connection.
func TestSetMaxConnections(t *testing.T) {
	_, coderd := startCoderd(t)
	b := startWith(t, coderd.URL, Options{MaxConnections: 1})
	dial := func() (*codertest.Session, error) {
		return codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{})
	}
	first, err := dial()
	require.NoError(t, err)
	defer first.Close()
	_, err = dial()
	require.ErrorContains(t, err, "status 503")

	require.NoError(t, b.SetMaxConnections(2))
	second, err := dial()
	require.NoError(t, err)
	defer second.Close()

	require.NoError(t, b.SetMaxConnections(1))
	for _, session := range []*codertest.Session{first, second} {
		_, err = session.Call(t.Context(), codertest.GetManifest, nil)
		require.NoError(t, err)
	}
	_, err = dial()
	require.ErrorContains(t, err, "status 503")
	require.Error(t, b.SetMaxConnections(-1))
	require.Equal(t, 1, b.MaxConnections())
}

// Connections on which nothing is asked keep no agent away: the one that waits the longest
// makes room. Beyond what can be answered connections are closed.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	_, coderd := startCoderd(t)
	b := startWith(t, coderd.URL, Options{MaxConnections: 1})
	var idle []net.Conn
	for range 2 + spareConns {
		c, err := net.Dial("tcp", b.addr)
		require.NoError(t, err)
		defer c.Close()
		idle = append(idle, c)
	}
	waiting := func() int {
		b.conns.mu.Lock()
		defer b.conns.mu.Unlock()
		return b.conns.waiting.Len()
	}
	require.Eventually(t, func() bool { return waiting() == len(idle) }, 20*time.Second, time.Millisecond)
	agent, err := codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{})
	require.NoError(t, err)
	require.NoError(t, idle[0].SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err = idle[0].Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 1, b.refusedConns(refusedIdle))
	for _, c := range idle[1:] {
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool { return waiting() == 0 }, 20*time.Second, time.Millisecond)
	_, err = agent.Call(t.Context(), codertest.GetManifest, nil)
	require.NoError(t, err)
	require.NoError(t, agent.Close())
	b.untilServing(t, 0)

	full := newConns(1, b.metrics)
	for range 2 + spareConns - 1 {
		here, there := net.Pipe()
		defer there.Close()
		full.open[here] = &conn{} // its request is served
		full.serving = 1
	}
	here, there := net.Pipe()
	full.changed(here, http.StateNew)
	_, err = there.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 1, b.refusedConns(refusedClosed))
}

// Whoever needs no token for what lasts, like a download that is read slowly, keeps no agent
// away.
func TestAgentsHaveAQuarter(t *testing.T) {
	_, coderd := startCoderd(t)
	b := startWith(t, coderd.URL, Options{MaxConnections: 4})
	var ends []func()
	for range 3 {
		done := b.conns.serve(t.Context(), false)
		require.NotNil(t, done)
		ends = append(ends, done)
	}
	require.Nil(t, b.conns.serve(t.Context(), false))
	require.True(t, b.FullAt().IsZero(), "no agent was refused")
	agent, err := codertest.Dial(t.Context(), b.addr, "token-"+secret, codertest.DialOptions{})
	require.NoError(t, err)
	require.Nil(t, b.conns.serve(t.Context(), true))
	require.False(t, b.FullAt().IsZero())
	require.NoError(t, agent.Close())
	for _, done := range ends {
		done()
	}
	b.untilServing(t, 0)
	require.Zero(t, b.conns.strangers)
}
