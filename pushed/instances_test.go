package pushed

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Instances has who pushed, until what it counted is in the totals, which are nobody.
func TestInstances(t *testing.T) {
	f := open(t, new(memory), Options{FoldAfter: time.Hour})
	require.Empty(t, f.Instances())
	require.Empty(t, push(t, f, start, 2, 1, false, counterOf(map[string]float64{"a": 10, "b": 1}, nil)))
	require.Empty(t, push(t, f, start.Add(time.Second), 1, 1, true, counterOf(map[string]float64{"a": 1}, nil)))
	all := f.Instances()
	require.Len(t, all, 2)
	require.Equal(t, instanceID(1), all[0].Instance, "in order")
	require.Equal(t, 1, all[0].Families)
	require.Equal(t, 1, all[0].Lines)
	require.Equal(t, start.Add(time.Second), all[0].PushedAt)
	require.Equal(t, 2, all[1].Lines)
	require.True(t, all[1].Live)
	f.expire(start.Add(time.Minute * 30))
	require.False(t, f.Instances()[1].Live)
	require.NoError(t, f.foldIdle(t.Context(), start.Add(2*time.Hour)))
	require.Empty(t, f.Instances())
}
