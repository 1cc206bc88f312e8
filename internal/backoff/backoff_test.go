package backoff

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

func TestDelay(t *testing.T) {
	for _, c := range []struct {
		failures int
		random   float64
		want     time.Duration
	}{
		{1, 0, 250 * time.Millisecond},
		{1, 0.5, 375 * time.Millisecond},
		{2, 0, 500 * time.Millisecond},
		{5, 0, 4 * time.Second},
		{6, 0, 7500 * time.Millisecond},
		{7, 0.999, 14992500 * time.Microsecond},
		{math.MaxInt, 0.999, 14992500 * time.Microsecond},
	} {
		b := Backoff{Min: 500 * time.Millisecond, Max: 15 * time.Second, Random: func() float64 { return c.random }}
		require.Equal(t, c.want, b.Delay(c.failures), "%d failures", c.failures)
	}
}

func TestDelayNearTheLongestDuration(t *testing.T) {
	b := Backoff{Min: time.Second, Max: math.MaxInt64 / 2, Random: func() float64 { return 0 }}
	require.Equal(t, time.Duration(math.MaxInt64/4), b.Delay(math.MaxInt))
}

func TestDelaysDiffer(t *testing.T) {
	b := Backoff{Min: time.Second, Max: time.Minute}
	seen := map[time.Duration]bool{}
	for range 100 {
		d := b.Delay(1)
		require.GreaterOrEqual(t, d, b.Min/2)
		require.Less(t, d, b.Min)
		seen[d] = true
	}
	require.Greater(t, len(seen), 90)
}

func TestWait(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := Backoff{Min: time.Second, Max: time.Minute, Random: func() float64 { return 0.5 }}
		began := time.Now()
		require.True(t, b.Wait(t.Context(), 2))
		require.Equal(t, 1500*time.Millisecond, time.Since(began))

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began = time.Now()
		require.False(t, b.Wait(ctx, 2))
		require.Equal(t, time.Millisecond, time.Since(began))
	})
}
