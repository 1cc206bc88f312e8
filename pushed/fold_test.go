package pushed

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

func counters(value string) string {
	return "# TYPE x_total counter\nx_total " + value + `
# TYPE h histogram
h_bucket{le="1"} ` + value + `
h_bucket{le="+Inf"} ` + value + `
h_sum 0.1
h_count ` + value + "\n"
}

// Instances that are gone become part of the totals after a day; one that comes
// back within a week counts only what is new.
func TestFold(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := new(memory)
		f := open(t, database, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		serves := func(x float64) {
			t.Helper()
			synctest.Wait()
			got := check(t, f)
			require.Equal(t, x, got[`{__name__="x_total"}`])
			require.Equal(t, x, got[`{__name__="h_count"}`])
			require.Equal(t, x, got[`{__name__="h_bucket", le="1.0"}`]+got[`{__name__="h_bucket", le="1"}`])
			restarted := open(t, database, Options{})
			require.Equal(t, got, check(t, restarted))
		}
		pushText(t, f, time.Now(), 1, 1, counters("5"))
		pushText(t, f, time.Now(), 2, 1, counters("7"))
		serves(12)
		for snapshot := range int64(25) { // the second one lives
			time.Sleep(time.Hour)
			pushText(t, f, time.Now(), 2, 2+snapshot, counters("7"))
		}
		serves(12)
		require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.folded))
		require.Len(t, database.rows, 3)
		// The snapshot that it had before it was folded is still known.
		pushText(t, f, time.Now(), 1, 1, counters("9"))
		serves(12)
		pushText(t, f, time.Now(), 1, 2, counters("6"))
		serves(13)
		pushText(t, f, time.Now(), 1, 3, counters("2"))
		serves(15)
		time.Sleep(26 * time.Hour)
		serves(15)
		require.Equal(t, 3.0, testutil.ToFloat64(f.metrics.folded))
		pushText(t, f, time.Now(), 1, 4, counters("1")) // reset
		serves(16)
		time.Sleep(8 * 24 * time.Hour)
		serves(16)
		require.Len(t, database.rows, 1)
		cancel()
		require.NoError(t, <-done)
	})
}

// With no room for another instance the oldest that are gone make it.
func TestMakeRoom(t *testing.T) {
	database := new(memory)
	f := open(t, database, Options{MaxInstances: 4})
	for i := range byte(20) {
		_, err := f.Push(t.Context(), start.Add(time.Duration(i)*time.Second), agent.Push{
			Instance: instanceID(1 + i), Snapshot: 1, Final: i != 2, Families: serialize(t, parseText(t, counters("1"))...),
		})
		require.NoError(t, err)
		require.Equal(t, float64(1+i), check(t, f)[`{__name__="x_total"}`])
	}
	require.Len(t, database.rows, 5)
	require.Contains(t, database.rows, instanceID(3), "alive")
	require.Equal(t, 20.0, check(t, open(t, database, Options{}))[`{__name__="x_total"}`])
}
