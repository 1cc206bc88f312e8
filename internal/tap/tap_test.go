package tap

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func newTaps(t testing.TB) *Taps {
	taps, err := New(prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	return taps
}

func open(t *testing.T, taps *Taps, id agent.ID) *Tap {
	t.Helper()
	tap, err := taps.Open(id)
	require.NoError(t, err)
	return tap
}

// Each tap gets the events of its agent while it is open.
func TestTaps(t *testing.T) {
	taps := newTaps(t)
	one, two := agent.ID{1}, agent.ID{2}
	taps.Send(one, Event{Text: "nobody"})
	a, b, other := open(t, taps, one), open(t, taps, one), open(t, taps, two)
	require.True(t, taps.Watches(one))
	taps.Send(one, Event{Text: "fi\x1b[2Jrst\n"})
	b.Close()
	b.Close()
	taps.Send(one, Event{Text: "second" + strings.Repeat("x", maxText)})
	require.Equal(t, Event{Text: "fi\uFFFD[2Jrst\uFFFD"}, <-a.Events())
	require.LessOrEqual(t, len((<-a.Events()).Text), maxText)
	require.Len(t, b.Events(), 1)
	<-b.Events()
	require.Empty(t, b.Events())
	require.Empty(t, other.Events())
	a.Close()
	require.False(t, taps.Watches(one))
	require.True(t, taps.Watches(two))
	other.Close()
	require.Nil(t, taps.watched.Load())

	var none *Taps
	require.False(t, none.Watches(one))
	none.Send(one, Event{})
}

// Who reads slowly misses events, and is told how many.
func TestMissedEvents(t *testing.T) {
	taps := newTaps(t)
	tap := open(t, taps, agent.ID{1})
	defer tap.Close()
	for n := range maxQueued + 3 {
		taps.Send(agent.ID{1}, Event{Sequence: int64(n)})
	}
	for n := range maxQueued {
		require.Equal(t, Event{Sequence: int64(n)}, <-tap.Events())
	}
	for n := range 2 {
		taps.Send(agent.ID{1}, Event{Sequence: int64(n)})
	}
	require.Equal(t, Event{Missed: 3}, <-tap.Events())
	require.Equal(t, Event{Sequence: 1}, <-tap.Events())
	require.Equal(t, 3.0, testutil.ToFloat64(taps.missed))
}

func TestTooManyTaps(t *testing.T) {
	taps := newTaps(t)
	var all []*Tap
	for n := range maxTaps {
		all = append(all, open(t, taps, agent.ID{byte(n / 2)}))
	}
	_, err := taps.Open(agent.ID{1})
	require.ErrorIs(t, err, ErrTooMany)
	require.Equal(t, 1.0, testutil.ToFloat64(taps.refused))
	all[0].Close()
	open(t, taps, agent.ID{1})
}

// Taps open and close while agents send.
func TestTapsAtOnce(t *testing.T) {
	taps := newTaps(t)
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			for range 100 {
				tap, err := taps.Open(agent.ID{byte(n % 2)})
				if err != nil {
					panic(err)
				}
				taps.Send(agent.ID{byte(n % 2)}, Event{Text: fmt.Sprint(n)})
				<-tap.Events()
				tap.Close()
			}
		})
	}
	all.Wait()
	require.Nil(t, taps.watched.Load())
}

func BenchmarkWatches(b *testing.B) {
	for _, others := range []int{0, maxTaps} {
		taps := newTaps(b)
		for n := range others {
			_, err := taps.Open(agent.ID{1, byte(n)})
			require.NoError(b, err)
		}
		b.Run(fmt.Sprintf("%d watched", others), func(b *testing.B) {
			for b.Loop() {
				if taps.Watches(agent.ID{}) {
					b.Fatal("nobody watches it")
				}
			}
		})
	}
}
