package pushed

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// policyNames are the families of policySnapshot, one of each cumulative type.
var policyNames = []string{"x_total", "h", "n", "s"}

// policySnapshot has a family of each cumulative type that counts v, and of each
// other type one that shows v.
func policySnapshot(v uint64) string {
	return strings.ReplaceAll(`# TYPE x_total counter
x_total V
# TYPE h histogram
h_bucket{le="1"} V
h_bucket{le="+Inf"} V
h_sum V
h_count V
# TYPE s summary
s_sum V
s_count V
# TYPE g gauge
g V
# TYPE u untyped
u V
`, "V", fmt.Sprint(v))
}

func pushPolicy(t *testing.T, f *Families, now time.Time, id byte, snapshot int64, v uint64) {
	t.Helper()
	in := parseText(t, policySnapshot(v))
	in = append(in, nativeFamily("n", v))
	_, err := f.Push(t.Context(), now, agent.Push{Instance: instanceID(id), Snapshot: snapshot, Families: serialize(t, in...)})
	require.NoError(t, err)
}

// Totals that were merged in one way are served when the operator sets another, and
// are merged on in it. All ways and types are tried.
func TestPolicyChangesOverTotals(t *testing.T) {
	ways := []metrics.Merge{metrics.MergeSum, metrics.MergeMax, metrics.MergeMin, metrics.MergeSticky, metrics.MergeNewest}
	for _, before := range ways {
		for _, after := range ways {
			t.Run(fmt.Sprintf("%v to %v", before, after), func(t *testing.T) {
				options := func(how metrics.Merge) Options {
					m := make(map[string]metrics.Merge)
					for _, name := range append([]string{"g", "u"}, policyNames...) {
						m[name] = how
					}
					return Options{Merge: m}
				}
				merge := func(how metrics.Merge, a, b float64) float64 {
					if how == metrics.MergeSum {
						return a + b
					}
					return max(a, b)
				}
				store := new(memory)
				requireCounts := func(f *Families, want float64) {
					t.Helper()
					for _, f := range []*Families{f, open(t, store, f.Options())} {
						got := check(t, f)
						require.Equal(t, want, got[`{__name__="x_total"}`])
						for _, name := range policyNames[1:] {
							require.Equal(t, want, got[`{__name__="`+name+`_count"}`], name)
							require.Equal(t, want, got[`{__name__="`+name+`_sum"}`], name)
						}
					}
				}
				fold := func(f *Families, now time.Time) {
					t.Helper()
					f.expire(now)
					require.NoError(t, f.foldIdle(t.Context(), now))
				}
				f := open(t, store, options(before))
				now := start.Add(-240 * time.Hour)
				pushPolicy(t, f, now, 1, 1, 1000)
				pushPolicy(t, f, now, 2, 1, 300)
				now = now.Add(48 * time.Hour)
				fold(f, now)
				want := merge(before, 1000, 300)
				requireCounts(f, want)

				f = open(t, store, options(after))
				requireCounts(f, want)
				pushPolicy(t, f, now, 3, 1, 7)
				want = merge(after, want, 7)
				requireCounts(f, want)
				now = now.Add(48 * time.Hour)
				fold(f, now)
				requireCounts(f, want)
				// One that was folded in the way before comes back.
				pushPolicy(t, f, now, 2, 2, 310)
				want = merge(after, want, 310)
				if after == metrics.MergeSum {
					want -= 300
				}
				requireCounts(f, want)
				now = now.Add(48 * time.Hour)
				fold(f, now)
				requireCounts(f, want)

				f = open(t, store, options(before))
				requireCounts(f, want)
				pushPolicy(t, f, now, 4, 1, 5)
				requireCounts(f, merge(before, want, 5))
			})
		}
	}
}

// What an instance counted before its resets, and what of it is part of the
// totals, is known still after the operator tried another way.
func TestPolicyTried(t *testing.T) {
	store := new(memory)
	merge := func(how metrics.Merge) Options {
		m := make(map[string]metrics.Merge)
		for _, name := range policyNames {
			m[name] = how
		}
		return Options{Merge: m}
	}
	requireCounts := func(f *Families, want float64) {
		t.Helper()
		got := check(t, f)
		require.Equal(t, want, got[`{__name__="x_total"}`])
		for _, name := range policyNames[1:] {
			require.Equal(t, want, got[`{__name__="`+name+`_count"}`], name)
		}
	}
	f := open(t, store, merge(metrics.MergeSum))
	pushPolicy(t, f, start, 1, 1, 10)
	pushPolicy(t, f, start, 1, 2, 4) // a reset
	pushPolicy(t, f, start, 2, 1, 100)
	pushPolicy(t, f, start, 3, 1, 1000)
	now := start.Add(25 * time.Hour)
	pushPolicy(t, f, now, 1, 3, 5)
	f.expire(now)
	require.NoError(t, f.foldIdle(t.Context(), now))
	pushPolicy(t, f, now, 2, 2, 101) // comes back
	requireCounts(f, 1116)

	f = open(t, store, merge(metrics.MergeMax))
	pushPolicy(t, f, now, 1, 4, 6)
	pushPolicy(t, f, now, 2, 3, 102)
	pushPolicy(t, f, now, 3, 2, 1001) // comes back
	requireCounts(f, 1100)

	f = open(t, store, merge(metrics.MergeSum))
	requireCounts(f, 1119)
	pushPolicy(t, f, now, 1, 5, 7)
	pushPolicy(t, f, now, 2, 4, 103)
	requireCounts(f, 1121)
}
