package pubsub

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// logged is what was logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// waitFor waits until text has been logged.
func (l *logged) waitFor(text string) {
	for !strings.Contains(l.String(), text) {
		time.Sleep(time.Millisecond)
	}
}

// runEngine runs e until the test ends or stop is called.
func runEngine(t testing.TB, e Engine) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// waitConnected waits until e is connected, or is not.
func waitConnected(e Engine, want bool) {
	for (e.Connected() == nil) != want {
		time.Sleep(time.Millisecond)
	}
}

// waitError waits until e says that it is not connected, and contains text.
func waitError(e Engine, text string) {
	for err := e.Connected(); err == nil || !strings.Contains(err.Error(), text); err = e.Connected() {
		time.Sleep(time.Millisecond)
	}
}

// testReplicas lets two engines on one server talk.
func testReplicas(t *testing.T, first, second Engine) {
	for i := range 20 {
		fromFirst, fromSecond := subscribe(t, second, "a"), newReceived()
		cancel, err := second.Subscribe("b", fromSecond.add)
		require.NoError(t, err)
		publish(t, first, "a", fmt.Sprint("first ", i))
		publish(t, first, "b", "1")
		fromFirst.waitFor(fmt.Sprint("first ", i))
		require.Equal(t, []string{"1"}, fromSecond.waitFor("1"))
		cancel()
	}
	back := subscribe(t, first, "a")
	publish(t, second, "a", "back")
	require.Equal(t, []string{"back"}, back.waitFor("back"))
}

// testReconnect has a server that is down, up, down and up again. Subscribers
// from before Run, and those of a connection that was lost, are called with nil
// when there is one, and then get messages.
func testReconnect(t *testing.T, e Engine, m *metrics, log *logged, up, down func()) {
	require.ErrorIs(t, e.Connected(), errNotRunning)
	require.ErrorIs(t, e.Publish(t.Context(), "a", []byte("too early")), errNotRunning)
	early := subscribe(t, e, "a")
	gone, err := e.Subscribe("gone", func([]byte) {})
	require.NoError(t, err)
	gone()
	stop := runEngine(t, e)
	log.waitFor("no connection to the pubsub") // the first attempt has failed
	waitError(e, "no connection to the pubsub: ")
	require.ErrorContains(t, e.Publish(t.Context(), "a", []byte("nobody there")), `publish to "a": `)

	up()
	waitConnected(e, true)
	require.Equal(t, []string{"nil"}, early.waitFor("nil"))
	publish(t, e, "a", "0")
	early.waitFor("0")
	late := subscribe(t, e, "a")
	publish(t, e, "a", "1")
	require.Equal(t, []string{"1"}, late.waitFor("1"))
	require.Equal(t, []string{"nil", "0", "1"}, early.waitFor("1"))
	require.Zero(t, testutil.ToFloat64(m.reconnects))
	waitPings(t, m, 1)

	down()
	waitConnected(e, false)
	require.Error(t, e.Publish(t.Context(), "a", []byte("lost")))
	meanwhile := subscribe(t, e, "b")
	up()
	meanwhile.waitFor("nil")
	waitConnected(e, true)
	publish(t, e, "a", "2")
	publish(t, e, "b", "2")
	require.Equal(t, []string{"1", "nil", "2"}, late.waitFor("2"))
	require.Equal(t, []string{"nil", "2"}, meanwhile.waitFor("2"))
	require.Equal(t, 1.0, testutil.ToFloat64(m.reconnects))
	waitPings(t, m, 2)

	stop()
	require.ErrorIs(t, e.Connected(), errNotRunning)
	require.ErrorIs(t, e.Publish(t.Context(), "a", []byte("too late")), errNotRunning)
	_ = subscribe(t, e, "a")
	require.Equal(t, 1, strings.Count(log.String(), `msg="no connection to the pubsub, trying again" error=`), "both were within a minute: %s", log)
	require.Equal(t, 1, strings.Count(log.String(), `msg="connected to the pubsub"`), log)
}

// waitPings waits until n messages of the engine to itself have arrived.
func waitPings(t *testing.T, m *metrics, n uint64) {
	for {
		var metric dto.Metric
		require.NoError(t, m.deliveryLatency.Write(&metric))
		if metric.Histogram.GetSampleCount() >= n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// testSilentServer: a server that takes everything and answers nothing is left
// in the end. One that is as slow for a moment is left, too, so messages are repeated.
func testSilentServer(t *testing.T, e Engine, proxy *proxy) {
	runEngine(t, e)
	waitConnected(e, true)
	got := subscribe(t, e, "a")
	deliver := func(text string) {
		for !receivedOn(got, func() { _ = e.Publish(t.Context(), "a", []byte(text)) }, text) {
			require.NoError(t, t.Context().Err())
		}
	}
	deliver("1")
	proxy.silence()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, e.Publish(ctx, "a", []byte("lost")), context.DeadlineExceeded)
	// pgx would clean up for 15 s.
	require.Less(t, time.Since(start), 10*time.Second)
	waitConnected(e, false)
	require.Error(t, e.Publish(t.Context(), "a", []byte("lost")))
	_ = subscribe(t, e, "b")
	proxy.heal()
	got.waitFor("nil")
	waitConnected(e, true)
	deliver("2")
}

// testLeavesNothing ends Run with and without a server that answers. The
// engines that open returns have no timeout to help them.
func testLeavesNothing(t *testing.T, proxy *proxy, open func() Engine) {
	before := goleak.IgnoreCurrent()
	e := open()
	stop := runEngine(t, e)
	waitConnected(e, true)
	cancel, err := e.Subscribe("a", func([]byte) {})
	require.NoError(t, err)
	publish(t, e, "a", "1")
	cancel()
	stop()
	proxy.waitClosed()
	goleak.VerifyNone(t, before)

	e = open()
	stop = runEngine(t, e)
	waitConnected(e, true)
	publish(t, e, "a", "1")
	proxy.silence()
	published, subscribed := make(chan error), make(chan func())
	go func() { published <- e.Publish(context.Background(), "a", []byte("lost")) }()
	go func() {
		cancel, err := e.Subscribe("a", func([]byte) {})
		if err != nil {
			cancel = func() {} // refused at the end is fine
		}
		subscribed <- cancel
	}()
	stop()
	require.Error(t, <-published)
	(<-subscribed)()
	proxy.waitClosed()
	goleak.VerifyNone(t, before)

	// While it connects.
	accepted := proxy.connections()
	e = open()
	stop = runEngine(t, e)
	proxy.waitAccepted(accepted + 1)
	require.Error(t, e.Connected())
	stop()
	proxy.waitClosed()
	goleak.VerifyNone(t, before)
}

// testBreaks cuts the connections of publisher, again and again while it
// publishes: what it published without an error arrives at receiver.
func testBreaks(t *testing.T, publisher, receiver Engine, proxy *proxy) {
	runEngine(t, publisher)
	got := subscribe(t, receiver, "a")
	waitConnected(publisher, true)
	for round := range 5 {
		cut := make(chan struct{})
		go func() {
			defer close(cut)
			got.waitForAny(fmt.Sprint(round, " 2"))
			proxy.heal()
		}()
		for n, lost := 0, false; n <= 2 || !lost; n++ {
			message := fmt.Sprint(round, " ", n)
			err := publisher.Publish(t.Context(), "a", []byte(message))
			for n <= 2 && err != nil { // the last cut can be noticed late
				waitConnected(publisher, true)
				err = publisher.Publish(t.Context(), "a", []byte(message))
			}
			if err != nil {
				lost = true
				continue
			}
			got.waitForAny(message)
			select {
			case <-cut:
				lost = true // unless it was published on a new connection
			default:
			}
		}
		<-cut
		waitConnected(publisher, true)
	}
}

// benchmarkEngine publishes a message and waits until it arrived.
func benchmarkEngine(b *testing.B, e Engine) {
	arrived := make(chan struct{}, 1)
	cancel, err := e.Subscribe("a", func([]byte) { arrived <- struct{}{} })
	require.NoError(b, err)
	b.Cleanup(cancel)
	for _, size := range []int{100, MaxPayload} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			payload := []byte(strings.Repeat("p", size))
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, e.Publish(b.Context(), "a", payload))
				<-arrived
			}
		})
	}
}

func BenchmarkMemory(b *testing.B) { benchmarkEngine(b, newMemory(b)) }
