package family

import (
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// An exact sum is the rational one, rounded once, in any order.
func TestExactSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOf(rapid.Custom(func(t *rapid.T) float64 {
			return math.Ldexp(float64(rapid.Int64().Draw(t, "mantissa")), rapid.IntRange(-120, 120).Draw(t, "exponent"))
		})).Draw(t, "values")
		sum, want := ExactSum(nil), new(big.Rat)
		for _, v := range values {
			sum = sum.plus(v)
			want.Add(want, new(big.Rat).SetFloat64(v))
		}
		near, _ := want.Float64()
		require.Equal(t, near, sum.value())
		require.Zero(t, slices.Clone(sum).addAll(sum.minus()).value())
	})
	// Half way between two numbers, and a little more or less.
	half := ExactSum(nil).plus(1).plus(0x1p-53)
	require.Equal(t, 1.0, half.value())
	require.Equal(t, 1+0x1p-52, half.plus(0x1p-106).value())
	require.Equal(t, 1.0, half.plus(-0x1p-107).value())
	require.Equal(t, 1+0x1p-51, ExactSum(nil).plus(1+0x1p-52).plus(0x1p-53).value())
	require.Equal(t, 1+0x1p-52, ExactSum(nil).plus(1+0x1p-52).plus(0x1p-53).plus(-0x1p-107).value())
	most := ExactSum{math.MaxFloat64}
	require.Equal(t, math.Inf(1), most.plus(math.MaxFloat64).plus(1).value())
	require.Equal(t, math.Inf(1), ExactSum{1}.plus(math.Inf(1)).plus(5).value())
	require.True(t, math.IsNaN(ExactSum{1}.plus(math.NaN()).plus(5).value()))
}
