package handshake

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// peer is a connection of an address.
type peer struct {
	net.Conn
	address string
	closed  func() // as the handshake of a closed connection ends
}

func (p *peer) RemoteAddr() net.Addr {
	addr, _ := net.ResolveTCPAddr("tcp", p.address)
	return addr
}

func (p *peer) Close() error { p.closed(); return nil }

// begin begins a handshake. done ends it; the error is sent once it may go on, or
// not.
func begin(g *Gate, address string) (done context.CancelFunc, entered <-chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() {
		err := g.enter(ctx, &peer{address: address, closed: cancel})
		if err != nil {
			cancel()
		}
		result <- err
	}()
	synctest.Wait()
	return cancel, result
}

func newGate(t *testing.T, opts Options) *Gate {
	g, err := New(opts, "test", prometheus.NewPedanticRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return g
}

func (g *Gate) refusals(reason string) float64 {
	return testutil.ToFloat64(g.metrics.refused.WithLabelValues(reason))
}

func TestHandshakesOfAnAddressWait(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, Options{Max: 3, MaxPerAddress: 2})
		done1, one := begin(g, "10.0.0.1:1")
		done2, two := begin(g, "10.0.0.1:2")
		require.NoError(t, <-one)
		require.NoError(t, <-two)
		done3, three := begin(g, "10.0.0.1:3")
		require.Empty(t, three, "it waits")
		done4, four := begin(g, "10.0.0.2:1")
		require.NoError(t, <-four, "others do not wait for it")
		done5, five := begin(g, "10.0.0.3:1")
		require.Empty(t, five, "there are as many as there may be")
		done1()
		require.NoError(t, <-three)
		done4()
		require.NoError(t, <-five)
		done2()
		done3()
		done5()
		synctest.Wait()
		require.Empty(t, g.running)
		require.Empty(t, g.addresses)
		for _, reason := range []string{refusedWait, refusedTimeout, refusedEvicted} {
			require.Zero(t, g.refusals(reason), reason)
		}
	})
}

func TestHandshakesTakeBoundedTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, Options{Timeout: 5 * time.Second})
		_, entered := begin(g, "10.0.0.1:1")
		require.NoError(t, <-entered)
		time.Sleep(5*time.Second + 1)
		synctest.Wait()
		require.Empty(t, g.running)
		require.Equal(t, 1.0, g.refusals(refusedTimeout))
	})
}

// Slow handshakes keep nobody out: the oldest gives way to whoever waits.
func TestSlowHandshakesGiveWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, Options{Max: 4, MaxPerAddress: 4})
		for range 4 {
			_, entered := begin(g, "10.0.0.1:1")
			require.NoError(t, <-entered)
		}
		start := time.Now()
		done, entered := begin(g, "10.0.0.2:1")
		require.NoError(t, <-entered)
		require.LessOrEqual(t, time.Since(start), patience+evictInterval)
		require.Equal(t, 1.0, g.refusals(refusedEvicted))
		done()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, g.running)
	})
}

// Whoever waits for too long is refused, and leaves nothing behind.
func TestWaitIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, Options{Max: 1, MaxPerAddress: 1, Timeout: 500 * time.Millisecond})
		ctx, end := context.WithCancel(context.Background())
		stuck := &peer{address: "10.0.0.1:1", closed: func() {}} // goes on when it is closed
		require.NoError(t, g.enter(ctx, stuck))
		start := time.Now()
		_, two := begin(g, "10.0.0.1:2")
		require.ErrorIs(t, <-two, errNoRoom)
		require.Equal(t, 500*time.Millisecond, time.Since(start))
		require.Equal(t, 1.0, g.refusals(refusedWait))
		_, three := begin(g, "10.0.0.1:3")
		end()
		require.NoError(t, <-three, "when the one before has ended")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, g.running)
		require.Empty(t, g.waiting)
		require.Empty(t, g.addresses)
	})
}

func TestAddressOf(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.0.1:5":              "10.0.0.1/32",
		"[::ffff:10.0.0.1]:5":     "10.0.0.1/32",
		"[2001:db8:1:2:3::4]:5":   "2001:db8:1:2::/64",
		"[fe80::1%eth0]:5":        "fe80::/64",
		"[2001:db8:1:2:ff::ff]:1": "2001:db8:1:2::/64",
	} {
		addr, err := net.ResolveTCPAddr("tcp", address)
		require.NoError(t, err)
		require.Equal(t, want, addressOf(addr).String(), address)
	}
}
