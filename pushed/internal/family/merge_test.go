package family

import (
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/metrics"
)

// What gauges combine to does not depend on their order, and a sum may be beyond
// what a term is.
func TestGaugesInAnyOrder(t *testing.T) {
	const most = float64(1 << 64)
	anyValue := rapid.OneOf(
		rapid.SampledFrom([]float64{0, 1, 5, 0.1, most, -most, 2 * most, -1e300, 1e300, math.Inf(1), math.Inf(-1), math.NaN(), math.MaxFloat64}),
		rapid.Float64(),
	)
	group := func(values []float64) (out []contributedSeries) {
		for _, v := range values {
			out = append(out, contributedSeries{Series: &Series{Value: canonical(v)}})
		}
		return out
	}
	require.Equal(t, 2*most+5, combine(metrics.MergeSum, group([]float64{most, most, 5})))
	require.Equal(t, 2*most+5, combine(metrics.MergeSum, group([]float64{5, most, most})))
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(anyValue, 1, 8).Draw(t, "values")
		other := rapid.Permutation(values).Draw(t, "order")
		var terms []float64
		sum := new(big.Rat)
		for _, v := range values {
			if math.Abs(v) <= most {
				terms = append(terms, v+0)
				sum.Add(sum, new(big.Rat).SetFloat64(v))
			}
		}
		for _, how := range []metrics.Merge{metrics.MergeSum, metrics.MergeMax, metrics.MergeMin} {
			got, again := combine(how, group(values)), combine(how, group(other))
			require.Equal(t, math.Float64bits(got), math.Float64bits(again), "%v and %v", got, again)
			if len(terms) == 0 {
				require.True(t, slices.ContainsFunc(values, func(v float64) bool { return v == got || v != v && got != got }))
				continue
			}
			want, _ := sum.Float64()
			switch how {
			case metrics.MergeMax:
				want = slices.Max(terms)
			case metrics.MergeMin:
				want = slices.Min(terms)
			}
			require.Equal(t, want, got)
		}
	})
}
