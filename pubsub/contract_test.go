package pubsub

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// testContract is what every engine must do. open returns one that is connected
// and has no subscribers.
func testContract(t *testing.T, open func(testing.TB) Engine) {
	t.Run("Delivery", func(t *testing.T) { testDelivery(t, open(t)) })
	t.Run("Limits", func(t *testing.T) { testLimits(t, open(t)) })
	t.Run("Cancel", func(t *testing.T) { testCancel(t, open(t)) })
	t.Run("SlowSubscriber", func(t *testing.T) { testSlowSubscriber(t, open(t)) })
	t.Run("Concurrent", func(t *testing.T) { testConcurrent(t, open(t)) })
	t.Run("Metadata", func(t *testing.T) { testMetadata(t, NewMetadata(open(t))) })
}

// received collects messages and lets a test wait for them.
type received struct {
	mu       sync.Mutex
	changed  sync.Cond
	messages []string // "nil" for a resynchronisation
}

func newReceived() *received {
	r := &received{}
	r.changed.L = &r.mu
	return r
}

func (r *received) add(payload []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if payload == nil {
		r.messages = append(r.messages, "nil")
	} else {
		r.messages = append(r.messages, string(payload))
	}
	r.changed.Broadcast()
}

// waitFor blocks until the last message is last and returns all.
func (r *received) waitFor(last string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.messages) == 0 || r.messages[len(r.messages)-1] != last {
		r.changed.Wait()
	}
	return r.messages
}

// waitForAny blocks until one of the messages is message.
func (r *received) waitForAny(message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !slices.Contains(r.messages, message) {
		r.changed.Wait()
	}
}

func subscribe(t *testing.T, ps PubSub, channel string) *received {
	r := newReceived()
	cancel, err := ps.Subscribe(channel, r.add)
	require.NoError(t, err)
	t.Cleanup(cancel)
	return r
}

func publish(t *testing.T, ps PubSub, channel, payload string) {
	t.Helper()
	require.NoError(t, ps.Publish(t.Context(), channel, []byte(payload)))
}

func testDelivery(t *testing.T, ps PubSub) {
	publish(t, ps, "a", "nobody listens")
	first, second := subscribe(t, ps, "a"), subscribe(t, ps, "a")
	other := subscribe(t, ps, "b")
	var want []string
	reused := make([]byte, 2)
	for i := range 20 {
		copy(reused, fmt.Sprintf("%02d", i))
		require.NoError(t, ps.Publish(t.Context(), "a", reused))
		want = append(want, string(reused))
	}
	publish(t, ps, "b", "b")
	require.Equal(t, want, first.waitFor("19"))
	require.Equal(t, want, second.waitFor("19"))
	require.Equal(t, []string{"b"}, other.waitFor("b"))
}

func testLimits(t *testing.T, ps PubSub) {
	long := strings.Repeat("c", MaxChannel)
	_, err := ps.Subscribe("", func([]byte) {})
	require.ErrorContains(t, err, `subscribe: channel name "" has 0 bytes, not 1 to 63`)
	_, err = ps.Subscribe(long+"c", func([]byte) {})
	require.ErrorContains(t, err, "has 64 bytes, not 1 to 63")
	for _, name := range []string{"a.b", "a b", "*", ">", "\x00", "é", `"`} {
		_, err = ps.Subscribe(name, func([]byte) {})
		require.ErrorContains(t, err, "has other characters than letters, digits, _ and -", name)
	}
	require.ErrorContains(t, ps.Publish(t.Context(), "", []byte("x")), "publish: channel name")
	require.ErrorContains(t, ps.Publish(t.Context(), "a", nil), `publish to "a": payload has 0 bytes, not 1 to 7999`)
	require.ErrorContains(t, ps.Publish(t.Context(), "a", make([]byte, MaxPayload+1)), "payload has 8000 bytes")

	require.ErrorContains(t, ps.Publish(t.Context(), "a", []byte("a\x00b")), `publish to "a": payload has a NUL`)
	require.ErrorContains(t, ps.Publish(t.Context(), "a", []byte("a\xff")), `publish to "a": payload is not valid UTF-8`)

	named := subscribe(t, ps, "azAZ09_-")
	publish(t, ps, "azAZ09_-", "é\t\n'\"\\$1")
	named.waitFor("é\t\n'\"\\$1")

	largest := subscribe(t, ps, long)
	payload := strings.Repeat("p", MaxPayload)
	publish(t, ps, long, payload)
	require.Equal(t, []string{payload}, largest.waitFor(payload))

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, ps.Publish(ended, "a", []byte("x")), context.Canceled)
}

func testCancel(t *testing.T, ps PubSub) {
	gone := newReceived()
	cancel, err := ps.Subscribe("a", gone.add)
	require.NoError(t, err)
	stays := subscribe(t, ps, "a")
	publish(t, ps, "a", "1")
	gone.waitFor("1")
	cancel()
	cancel()
	publish(t, ps, "a", "2")
	stays.waitFor("2")
	require.Equal(t, []string{"1"}, gone.waitFor("1"))

	// Cancelling waits for the call under way, and there is none after it.
	entered, leave := make(chan struct{}), make(chan struct{})
	calls, left := 0, false
	cancel, err = ps.Subscribe("b", func([]byte) {
		if calls++; calls == 1 {
			close(entered)
			<-leave
			left = true
		}
	})
	require.NoError(t, err)
	other := subscribe(t, ps, "b")
	publish(t, ps, "b", "1")
	publish(t, ps, "b", "2")
	<-entered
	other.waitFor("2")
	go close(leave)
	cancel()
	require.True(t, left)
	before := calls
	publish(t, ps, "b", "3")
	other.waitFor("3")
	require.Equal(t, before, calls)
}

// A subscriber that stands still delays nobody, and is notified that it missed
// something.
func testSlowSubscriber(t *testing.T, ps PubSub) {
	entered, leave := make(chan struct{}), make(chan struct{})
	slow := newReceived()
	cancel, err := ps.Subscribe("a", func(payload []byte) {
		if slow.add(payload); string(payload) == "first" {
			close(entered)
			<-leave
		}
	})
	require.NoError(t, err)
	t.Cleanup(cancel)
	publish(t, ps, "a", "first")
	<-entered
	quick := subscribe(t, ps, "a")
	for i := range queueLength + 10 { // then there is room for the last one
		publish(t, ps, "a", strconv.Itoa(i))
		quick.waitFor(strconv.Itoa(i))
	}
	close(leave)
	publish(t, ps, "a", "last")
	messages := slow.waitFor("last")
	require.Contains(t, messages, "nil")
	require.LessOrEqual(t, len(messages), queueLength+3, "what waits is bounded")
	require.Equal(t, "first", messages[0])
}

// Publishers and subscribers come and go; each subscriber gets the messages of
// each publisher in order, without a gap unless subscribers are notified of it.
func testConcurrent(t *testing.T, ps PubSub) {
	const publishers, messages = 4, 500
	var group, publishing errgroup.Group
	done := make(chan struct{})
	for range 4 {
		group.Go(func() error {
			for open := true; open; {
				seen, order := make(chan struct{}), newOrder()
				cancel, err := ps.Subscribe("a", func(payload []byte) {
					if order.add(payload); order.calls == 5 {
						close(seen)
					}
				})
				if err != nil {
					return err
				}
				select {
				case <-seen:
				case <-done:
					open = false
				}
				cancel()
				if order.wrong != nil {
					return order.wrong
				}
			}
			return nil
		})
	}
	for from := range publishers {
		publishing.Go(func() error { return publishNumbers(t.Context(), ps, "a", from, messages) })
	}
	require.NoError(t, publishing.Wait())
	close(done)
	require.NoError(t, group.Wait())
}

// publishNumbers publishes messages that an order takes.
func publishNumbers(ctx context.Context, ps PubSub, channel string, from, messages int) error {
	for n := range messages {
		if err := ps.Publish(ctx, channel, fmt.Appendf(nil, "%d %d", from, n)); err != nil {
			return err
		}
	}
	return nil
}

// order checks that the numbers of each publisher rise by one, but for what
// nil says.
type order struct {
	calls int
	next  map[int]int
	wrong error
}

func newOrder() *order { return &order{next: make(map[int]int)} }

func (o *order) add(payload []byte) {
	o.calls++
	if payload == nil {
		clear(o.next)
		return
	}
	var from, n int
	if _, err := fmt.Sscanf(string(payload), "%d %d", &from, &n); err != nil {
		o.wrong = fmt.Errorf("%q: %w", payload, err)
	}
	if want, known := o.next[from]; known && n != want {
		o.wrong = fmt.Errorf("publisher %d: message %d, want %d", from, n, want)
	}
	o.next[from] = n + 1
}
