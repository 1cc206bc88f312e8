package family

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestNativeBound(t *testing.T) {
	for _, c := range []struct {
		v      float64
		schema int32
		want   float64
	}{
		{0, 3, 0},
		{0x1p-128, 8, 0x1p-128}, // client_golang's
		{0x1p-128, -4, 0x1p-128},
		{7, 0, 8},
		{7, -2, 16},
		{7, -4, 65536},
		{8, 0, 8},
		{0.3, 0, 0.5},
		{0.3, 1, 0.35355339059327373},
		{5e-324, -4, 0x1p-1072},
		{math.MaxFloat64, 8, math.MaxFloat64},
		{math.MaxFloat64, -4, math.MaxFloat64},
		{1.5e308, 0, math.MaxFloat64},
	} {
		require.Equal(t, c.want, nativeBound(c.v, c.schema), "of %v at %d", c.v, c.schema)
	}
	rapid.Check(t, func(t *rapid.T) {
		v := math.Abs(rapid.Float64Range(0, math.MaxFloat64).Draw(t, "v"))
		fine := rapid.Int32Range(-4, 8).Draw(t, "fine")
		coarse := rapid.Int32Range(-4, fine).Draw(t, "coarse")
		bound := nativeBound(v, fine)
		require.GreaterOrEqual(t, bound, v)
		require.Equal(t, bound, nativeBound(bound, fine))
		require.Equal(t, nativeBound(v, coarse), nativeBound(bound, coarse))
	})
}

func TestResetSince(t *testing.T) {
	d := func(count float64, counts ...float64) *Distribution {
		return &Distribution{Count: count, Bounds: []float64{1, 2, 3}[:len(counts)], Counts: counts}
	}
	for _, c := range []struct {
		old, next *Distribution
		want      bool
	}{
		{d(5, 1, 2, 3), d(5, 1, 2, 3), false},
		{d(5, 1, 2, 3), d(7, 1, 3, 5), false},
		{d(5, 1, 2, 3), d(4, 1, 2, 2), true},
		{d(5, 1, 2, 3), d(9, 0, 2, 3), true},
		{d(5, 1, 2, 3), d(9, 2, 2, 3), true}, // none between 1 and 2
		{d(5, 1, 2, 3), d(5, 1, 2, 4), true}, // fewer above 3
		{d(5, 1, 2, 3), d(5, 1, 2), true},
		{d(5, 1, 2), d(5, 1, 2, 3), true},
	} {
		require.Equal(t, c.want, c.next.resetSince(c.old), "%v after %v", c.next, c.old)
	}
}
