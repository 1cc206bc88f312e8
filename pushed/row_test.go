package pushed

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// rowOf returns a row as it was once written, of whatever is in it.
func rowOf(t *testing.T, id agent.Instance, r family.Row) agent.PushRow {
	t.Helper()
	codec, err := family.NewCodec()
	require.NoError(t, err)
	data, err := codec.Encode(&r)
	require.NoError(t, err)
	return agent.PushRow{Instance: id, UpdatedAt: start, Data: data, Version: 1}
}

// Rows of before can have counters and sums that are no numbers, or beyond all that
// is measured. They are read without these, and others count on.
func TestRowsHeal(t *testing.T) {
	for _, bad := range []float64{1e300, -1, math.NaN(), math.Inf(1), math.Inf(-1)} {
		families := func(hist bool) family.Set {
			x := &family.Family{Name: "x_total", Type: metrics.Counter, Series: []family.Series{{Value: bad}}}
			if !hist {
				return family.Set{x.Name: x}
			}
			s := &family.Family{Name: "s", Type: metrics.Summary, Series: []family.Series{{Hist: &family.Distribution{Count: 2, Sum: family.ExactSum{bad}}}}}
			return family.Set{s.Name: s, x.Name: x}
		}
		for name, rows := range map[string]map[agent.Instance]agent.PushRow{
			"instance": {instanceID(1): rowOf(t, instanceID(1), family.Row{Snapshot: 1, Families: families(true)})},
			"folded": {
				instanceID(1): rowOf(t, instanceID(1), family.Row{Snapshot: 1, Folded: true, Families: families(true)}),
				{}:            rowOf(t, agent.Instance{}, family.Row{Families: families(false)}),
			},
		} {
			store := &memory{rows: rows}
			f := open(t, store, Options{})
			healed := 2.0 // the counter and the sum
			if bad == -1 {
				healed-- // sums of observations below 0 are
			}
			if name == "folded" {
				healed++ // the total too
			}
			require.Equal(t, healed, testutil.ToFloat64(f.metrics.omitted), "%s of %v", name, bad)
			pushText(t, f, time.Now(), 2, 1, counter("5"))
			require.Equal(t, 5.0, total(t, f), "%s of %v", name, bad)
			pushText(t, f, time.Now(), 1, 2, counter("3"))
			require.Equal(t, 8.0, total(t, f), "%s of %v", name, bad)
			require.Equal(t, 8.0, total(t, open(t, store, Options{})))
		}
	}
}

// What many instances counted together may be beyond what one may count, and stays
// so over restarts.
func TestSumsBeyondTerms(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	const want = float64(3 << 64)
	served := func(f *Families) {
		t.Helper()
		got := check(t, f)
		require.Equal(t, want, got[`{__name__="x_total"}`])
		require.Equal(t, want, got[`{__name__="h_sum"}`])
	}
	const most = "18446744073709551616\n"
	const snapshot = "# TYPE x_total counter\nx_total " + most + "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_count 1\nh_sum " + most
	for id := range byte(2) {
		pushText(t, f, start, 1+id, 1, snapshot)
	}
	pushText(t, f, start, 1, 2, "# TYPE x_total counter\nx_total 0\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 0\nh_count 0\nh_sum 0\n")
	pushText(t, f, start, 1, 3, snapshot) // reset and as much again
	served(f)
	served(open(t, store, Options{}))
	late := start.Add(25 * time.Hour)
	f.expire(late)
	require.NoError(t, f.foldIdle(t.Context(), late))
	served(f)
	again := open(t, store, Options{})
	served(again)
	require.Zero(t, testutil.ToFloat64(again.metrics.omitted))
	// Also if the operator has the largest served: it was summed before.
	whole := map[string]metrics.Merge{"x_total": metrics.MergeMax, "h": metrics.MergeMax}
	f = open(t, store, Options{Merge: whole})
	served(f)
	pushText(t, f, late, 3, 1, snapshot)
	late = late.Add(25 * time.Hour)
	f.expire(late)
	require.NoError(t, f.foldIdle(t.Context(), late))
	served(open(t, store, Options{Merge: whole}))
}

// What compresses well is read again, however small the limit of what is stored.
func TestRowsThatCompressWell(t *testing.T) {
	store := new(memory)
	opts := Options{MaxRowBytes: 5_000}
	f := open(t, store, opts)
	values := make(map[string]float64)
	for n := range 25 {
		values[strings.Repeat("x", 32_000)+strconv.Itoa(n)] = 1
	}
	require.Empty(t, push(t, f, start, 1, 1, false, counterOf(values, nil)))
	require.Less(t, len(store.rows[instanceID(1)].Data), opts.MaxRowBytes)
	requireServed(t, f, store, values)
	late := start.Add(25 * time.Hour)
	f.expire(late)
	require.NoError(t, f.foldIdle(t.Context(), late))
	requireServed(t, f, store, values)
}
