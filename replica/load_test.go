package replica

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// exchange gives a replica's load, and returns the loads that it knows, its own last,
// and the factor.
func exchange(t *testing.T, r *running, cpu float64) (loads []float64, factor float64) {
	t.Helper()
	shared, err := r.ExchangeLoads(t.Context(), agent.Load{CPU: cpu})
	require.NoError(t, err)
	require.Equal(t, r.Leads(), shared.Decides)
	for _, other := range shared.Replicas {
		loads = append(loads, other.Load.CPU)
	}
	require.Equal(t, r.Self(), shared.Replicas[len(shared.Replicas)-1].ID)
	slices.Sort(loads[:len(loads)-1])
	return loads, shared.IntervalFactor
}

// Each replica gets the loads of those that live, and what the leader decided.
func TestLoads(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		w.setDown(agent.ErrStoreDown)
		a := w.start(t)
		loads, factor := exchange(t, a, 1)
		require.Equal(t, []float64{1}, loads)
		require.Zero(t, factor, "nothing was read")
		w.setDown(nil)
		wait(lease)
		b, c := w.start(t), w.start(t)
		exchange(t, b, 2)
		exchange(t, c, 3)
		wait(lease)
		for r, want := range map[*running][]float64{a: {2, 3, 1}, b: {1, 3, 2}, c: {1, 2, 3}} {
			loads, factor := exchange(t, r, want[2])
			require.Equal(t, want, loads)
			require.Equal(t, 1.0, factor)
		}

		require.ErrorIs(t, b.DecideIntervalFactor(t.Context(), 9), agent.ErrOutdated)
		require.NoError(t, a.DecideIntervalFactor(t.Context(), 1.5))
		wait(0)
		for _, r := range []*running{a, b, c} {
			_, factor := exchange(t, r, 1)
			require.Equal(t, 1.5, factor, "all read it at once")
		}

		// A replica that is gone counts no more, and its factor stays.
		a.kill()
		wait(2 * lease)
		loads, factor = exchange(t, b, 2)
		require.Equal(t, []float64{1, 2}, loads)
		require.Equal(t, 1.5, factor)
		require.Equal(t, 1, leaders(b, c))

		// While the database is away all stays as it is.
		w.setDown(agent.ErrStoreDown)
		wait(10 * lease)
		for _, r := range []*running{b, c} {
			require.Error(t, r.DecideIntervalFactor(t.Context(), 2))
			_, factor = exchange(t, r, 1)
			require.Equal(t, 1.5, factor)
		}
	})
}
