package pubsub

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
