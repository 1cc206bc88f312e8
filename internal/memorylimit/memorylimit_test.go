package memorylimit

import (
	"math"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestLower(t *testing.T) {
	none := func() (uint64, error) { return 0, memlimit.ErrNoLimit }
	require.Zero(t, lower(math.MaxInt64, none))
	require.Equal(t, 5.0, lower(5, none))
	require.Equal(t, 5.0, lower(5, memlimit.Limit(6)))
	require.Equal(t, 4.0, lower(5, memlimit.Limit(4)))
	require.Equal(t, 4.0, lower(math.MaxInt64, memlimit.Limit(4)))
}

func TestCollector(t *testing.T) {
	require.GreaterOrEqual(t, testutil.ToFloat64(Collector()), 0.0)
}

func BenchmarkCollector(b *testing.B) {
	c := Collector()
	for b.Loop() {
		testutil.ToFloat64(c)
	}
}
