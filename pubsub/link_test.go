package pubsub

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

func TestOptions(t *testing.T) {
	o := Options{}.withDefaults()
	require.NoError(t, o.validate())
	require.Equal(t, Options{Name: "agentstatsd", Timeout: 5 * time.Second, CheckInterval: 5 * time.Second, PingInterval: 15 * time.Second}, o)
	o = Options{Timeout: time.Second, CheckInterval: -time.Second}.withDefaults()
	require.Equal(t, time.Second, o.Timeout)
	require.EqualError(t, o.validate(), "check interval: want at least 0, got -1s")
}

func testMetrics(t *testing.T) *metrics {
	m, err := newMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	return m
}

// An outage is logged once a minute, however often connecting fails.
func TestLink(t *testing.T) {
	bubble.Test(t, testLink)
}

func testLink(t *testing.T) {
	log := &logged{}
	l := newLink(testMetrics(t), slog.New(slog.NewTextHandler(log, nil)))
	require.ErrorIs(t, l.err(), errNotRunning)
	l.noteConnected()
	require.NoError(t, l.err())
	require.Empty(t, log.String(), "nothing was wrong")
	for range 2 {
		l.noteLost(errBroken)
		l.noteLost(errors.New("still"))
		require.EqualError(t, l.err(), "no connection to the pubsub: still")
		l.noteConnected()
		require.NoError(t, l.err())
		time.Sleep(time.Minute)
	}
	require.Equal(t, 2, strings.Count(log.String(), "error=broken"))
	require.NotContains(t, log.String(), "still")
	require.Equal(t, 2, strings.Count(log.String(), "connected to the pubsub"))
	require.Equal(t, 2.0, testutil.ToFloat64(l.metrics.reconnects))
	l.noteEnded()
	require.ErrorIs(t, l.err(), errNotRunning)
}

// sentPings takes pings and delivers none.
type sentPings struct {
	mu    sync.Mutex
	pings [][]byte
	err   error
}

func (s *sentPings) take(ours bool, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ours {
		s.pings = append(s.pings, payload)
	}
	return s.err
}

func (s *sentPings) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *sentPings) all() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pings
}

// A server that takes pings is not enough: they must arrive.
func TestPings(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPinger(15*time.Second, "", testMetrics(t), slog.New(slog.DiscardHandler))
		require.NoError(t, checkChannel(p.channel))
		server := &sentPings{}
		go p.run(ctx, func(_ context.Context, channel string, payload []byte) error {
			return errors.Join(server.take(channel == p.channel, payload), checkPayload(payload))
		})
		synctest.Wait()
		require.Empty(t, server.all(), "not before there is a connection")
		p.restart()
		synctest.Wait()
		require.Len(t, server.all(), 1, "at once")
		time.Sleep(20 * time.Millisecond)
		require.False(t, p.handlePing([]byte("another's")))
		require.False(t, p.handlePing(server.all()[0]))
		require.False(t, p.handlePing(server.all()[0]), "once")
		require.NoError(t, p.err())

		time.Sleep(5*time.Second - 21*time.Millisecond)
		require.Len(t, server.all(), 1)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Len(t, server.all(), 2)
		time.Sleep(14 * time.Second)
		require.NoError(t, p.err(), "under way")
		time.Sleep(time.Second)
		synctest.Wait()
		require.ErrorContains(t, p.err(), "messages do not arrive: one to itself was not delivered within 15s")
		require.False(t, p.handlePing(server.all()[1]), "too late")
		require.Error(t, p.err())
		require.True(t, p.handlePing(server.all()[2]), "others may have been missed")
		require.NoError(t, p.err())

		server.fail(errBroken)
		time.Sleep(40 * time.Second)
		require.NoError(t, p.err(), "what was not sent is not missing")

		server.fail(nil)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Error(t, p.err())
		before := len(server.all())
		p.restart()
		require.NoError(t, p.err(), "that was another connection")
		synctest.Wait()
		require.Len(t, server.all(), before+1)
		time.Sleep(4 * time.Second)
		require.Len(t, server.all(), before+1, "some seconds after the new connection")
		require.False(t, p.handlePing(server.all()[before]))

		p.restart()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.ErrorContains(t, p.err(), "messages do not arrive: one to itself was not delivered within 5s", "the first one")
		time.Sleep(15 * time.Second)
		synctest.Wait()
		require.ErrorContains(t, p.err(), "messages do not arrive: one to itself was not delivered within 15s")

		cancel()
		synctest.Wait()
		expected := `
# HELP agentstatsd_pubsub_delivery_latency_seconds Time from publishing a message until it arrived here, of messages of the engine to itself. None in memory.
# TYPE agentstatsd_pubsub_delivery_latency_seconds histogram
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="0.0001"} 1
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="0.0004"} 1
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="0.0016"} 1
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="0.0064"} 1
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="0.0256"} 2
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="0.1024"} 2
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="0.4096"} 2
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="1.6384"} 2
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="6.5536"} 3
agentstatsd_pubsub_delivery_latency_seconds_bucket{le="+Inf"} 3
agentstatsd_pubsub_delivery_latency_seconds_sum 4.02
agentstatsd_pubsub_delivery_latency_seconds_count 3
`
		require.NoError(t, testutil.CollectAndCompare(p.metrics.deliveryLatency, strings.NewReader(expected)))
	})
}
