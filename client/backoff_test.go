package client

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBackoffCeiling(t *testing.T) {
	for _, test := range []struct {
		backoff Backoff
		want    []int
	}{
		{Backoff{}, []int{1, 2, 4, 8, 16, 30, 30}},
		{Backoff{Min: 10 * time.Second}, []int{10, 20, 30, 30}},
		{Backoff{Min: time.Minute}, []int{60, 60}},
		{Backoff{Min: 3 * time.Second, Max: 2 * time.Second}, []int{2, 2}},
	} {
		for attempt, seconds := range test.want {
			require.Equal(t, time.Duration(seconds)*time.Second, test.backoff.withDefaults().ceiling(attempt), "%v %d", test.backoff, attempt)
		}
		require.Equal(t, test.backoff.withDefaults().Max, test.backoff.withDefaults().ceiling(1<<30))
	}
	b := Backoff{}.withDefaults()
	least, most := time.Hour, time.Duration(0)
	for range 1000 {
		wait := b.wait(3)
		require.LessOrEqual(t, wait, 8*time.Second)
		least, most = min(least, wait), max(most, wait)
	}
	require.Less(t, least, time.Second, "full jitter")
	require.Greater(t, most, 7*time.Second)
}
