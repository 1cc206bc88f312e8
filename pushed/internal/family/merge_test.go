package family

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// contribution returns what instance n has of the only family of a snapshot. It
// pushed at n.
func contribution(t fataler, n byte, live bool, text string) Contribution {
	t.Helper()
	families := admit(t, nil, text).Families
	require.Len(t, families, 1)
	return Contribution{
		Contributor{Instance: agent.Instance{15: n}, UpdatedAt: received.Add(time.Duration(n)), Live: live}, families[families.Names()[0]],
	}
}

// Each way of merging, of two live instances and one that is gone.
func TestMerge(t *testing.T) {
	for _, c := range []struct {
		typ  string
		how  metrics.Merge
		want string // "": nothing is left when all are gone
		gone string
	}{
		{"counter", metrics.MergeSum, "x 16", "x 16"},
		{"counter", metrics.MergeMax, "x 10", "x 10"},
		{"gauge", metrics.MergeSum, "x 6", ""},
		{"gauge", metrics.MergeMax, "x 4", ""},
		{"gauge", metrics.MergeMin, "x 2", ""},
		{"gauge", metrics.MergeNewest, "x 2", ""},
		{"gauge", metrics.MergeSticky, "x 4", ""},
		{"gauge", metrics.MergeStickySeries, "x 4", ""},
		{"untyped", metrics.MergeSum, "x 6", ""},
	} {
		t.Run(fmt.Sprintf("%s %v", c.typ, c.how), func(t *testing.T) {
			header := "# HELP x help\n# TYPE x " + c.typ + "\n"
			merge := func(live bool) *Family {
				var all []Contribution
				for n, v := range []string{"10", "4", "2"} {
					one := contribution(t, byte(1+n), n > 0 && live, header+"x "+v+"\n")
					for i := range one.Family.Series {
						one.Family.Series[i].Changed += int64(n)
						one.Family.Series[i].Since += int64(n)
					}
					one.Family.Since += int64(n)
					all = append(all, one)
				}
				slices.Reverse(all)
				merged, floors := Policy{"x": c.how}.Merge(all, nil)
				require.Nil(t, floors)
				return merged
			}
			require.Equal(t, header+c.want+"\n", render(t, merge(true)))
			if c.gone == "" {
				require.Nil(t, merge(false))
			} else {
				require.Equal(t, header+c.gone+"\n", render(t, merge(false)))
			}
		})
	}
	merged, floors := Policy(nil).Merge(nil, Floors{"": nil})
	require.Nil(t, merged)
	require.Nil(t, floors)
}

// Quantiles are those of the only live instance that has the series.
func TestMergeQuantiles(t *testing.T) {
	const summary = "# TYPE s summary\ns{quantile=\"0.5\"} 3\ns_sum 30\ns_count 3\n"
	const sum = "# TYPE s summary\ns_sum 60\ns_count 6\n"
	for live, want := range map[int]string{0: sum, 1: strings.Replace(sum, "s_sum", "s{quantile=\"0.5\"} 3\ns_sum", 1), 2: sum} {
		merged, _ := Policy(nil).Merge([]Contribution{contribution(t, 1, live > 0, summary), contribution(t, 2, live > 1, summary)}, nil)
		require.Equal(t, want, render(t, merged), "%d are alive", live)
	}
}

// A series is hidden while all live instances that push it push it in a refused way.
func TestMergeRefused(t *testing.T) {
	const counter = "# TYPE x_total counter\nx_total 3\n"
	bad, good, gone := contribution(t, 1, true, counter), contribution(t, 2, true, counter), contribution(t, 3, false, counter)
	bad.Family = bad.Family.refuseAll(true)
	merged, _ := Policy(nil).Merge([]Contribution{bad, gone}, nil)
	require.Nil(t, merged)
	merged, _ = Policy(nil).Merge([]Contribution{bad, good, gone}, nil)
	require.Equal(t, "# TYPE x_total counter\nx_total 9\n", render(t, merged))
	bad.Live = false
	merged, _ = Policy(nil).Merge([]Contribution{bad, gone}, nil)
	require.Equal(t, "# TYPE x_total counter\nx_total 6\n", render(t, merged))
}

// anyCumulative draws the families of instances that count under one name: counters,
// or histograms with buckets of any kind, of which some began anew.
func anyCumulative(t *rapid.T) (all []Contribution) {
	histogram := rapid.Bool().Draw(t, "histogram")
	for n := range rapid.IntRange(1, 5).Draw(t, "instances") {
		var families Set
		for range rapid.IntRange(1, 3).Draw(t, "snapshots") {
			var b strings.Builder
			b.WriteString(map[bool]string{true: "# TYPE x histogram\n", false: "# TYPE x counter\n"}[histogram])
			for _, label := range []string{"a", "b"} {
				sum := rapid.Float64Range(0, 1e9).Draw(t, "sum")
				if !histogram {
					fmt.Fprintf(&b, "x{l=%q} %v\n", label, sum)
					continue
				}
				count := 0
				for _, bound := range []string{"1", "2.5", "10"} {
					count += rapid.IntRange(0, 3).Draw(t, "count")
					if rapid.Bool().Draw(t, "bucket") {
						fmt.Fprintf(&b, "x_bucket{l=%q,le=%q} %d\n", label, bound, count)
					}
				}
				fmt.Fprintf(&b, "x_bucket{l=%q,le=\"+Inf\"} %d\nx_sum{l=%q} %v\nx_count{l=%q} %d\n", label, count, label, sum, label, count)
			}
			families = admit(t, families, b.String()).Families
		}
		all = append(all, Contribution{Contributor{
			Instance: agent.Instance{15: byte(1 + n)}, UpdatedAt: received.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "age"))), Live: rapid.Bool().Draw(t, "live"),
		}, families["x"]})
	}
	return all
}

// encodeAll returns the families as they are stored.
func encodeAll(t fataler, c *Codec, all []Contribution) (rows [][]byte) {
	t.Helper()
	for _, one := range all {
		row, err := c.Encode(&Row{Families: Set{"x": one.Family}})
		require.NoError(t, err)
		rows = append(rows, row)
	}
	return rows
}

// What is served does not depend on the order of instances. It stays the same when
// some of them are merged into the totals. One that comes back counts only what is
// new.
func TestTotalsServeTheSame(t *testing.T) {
	codec := newCodec(t)
	rapid.Check(t, func(t *rapid.T) {
		all := anyCumulative(t)
		policy := Policy{"x": metrics.MergeSum}
		if all[0].Family.Type == metrics.Counter && rapid.Bool().Draw(t, "whole") {
			policy["x"] = metrics.MergeMax
		}
		serve := func(all []Contribution) string {
			merged, _ := policy.Merge(slices.Clone(all), nil)
			return render(t, merged)
		}
		want, stored := serve(all), encodeAll(t, codec, all)
		require.Equal(t, want, serve(rapid.Permutation(all).Draw(t, "order")))

		totals, left := Contribution{Contributor: Contributor{UpdatedAt: received}}, all
		for len(left) > 0 && rapid.Bool().Draw(t, "fold") {
			into := []Contribution{left[0]}
			if totals.Family != nil {
				into = append(into, totals)
			}
			totals.Family = policy.Fold(into)
			back := left[0]
			back.Family = Set{"x": back.Family}.Fold()["x"]
			if rapid.Bool().Draw(t, "is back") && policy["x"] == metrics.MergeSum {
				require.Equal(t, want, serve(append(slices.Clone(left[1:]), totals, back)))
			}
			left = left[1:]
			require.Equal(t, want, serve(append(slices.Clone(left), totals)))
		}
		require.Equal(t, stored, encodeAll(t, codec, all), "families do not change")
	})
}

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
