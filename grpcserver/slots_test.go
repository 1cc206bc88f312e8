package grpcserver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

func TestSlots(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := NewSlots(1)
		acquire := func(within time.Duration) <-chan error {
			result := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), within)
				defer cancel()
				result <- s.Acquire(ctx)
			}()
			synctest.Wait()
			return result
		}
		require.NoError(t, <-acquire(time.Second))
		require.False(t, s.TryAcquire())
		short, first, second := acquire(time.Second), acquire(time.Hour), acquire(time.Hour)
		require.ErrorIs(t, <-short, context.DeadlineExceeded)
		require.Empty(t, first)
		s.SetLimit(2)
		require.NoError(t, <-first, "whoever has waited longest")
		require.Empty(t, second)
		require.Equal(t, 2, s.InUse())
		s.SetLimit(1)
		s.Release()
		synctest.Wait()
		require.Empty(t, second, "there are as many as there may be")
		require.False(t, s.TryAcquire())
		s.Release()
		require.NoError(t, <-second)
		s.Release()
		require.Zero(t, s.InUse())
		require.Equal(t, 1, s.Limit())
		require.Empty(t, s.queue)
		require.True(t, s.TryAcquire())
	})
}
