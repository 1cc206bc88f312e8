package recurring

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

func TestOneLineAMinute(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var e Events
		total, due := e.Due(3)
		require.True(t, due, "the first one at once")
		require.Equal(t, 3, total)
		for range 59 {
			time.Sleep(time.Second)
			_, due = e.Due(2)
			require.False(t, due)
		}
		time.Sleep(time.Second)
		total, due = e.Due(1)
		require.True(t, due)
		require.Equal(t, 2*59+1, total)
		time.Sleep(time.Hour)
		total, due = e.Due(1)
		require.True(t, due)
		require.Equal(t, 1, total)
	})
}
