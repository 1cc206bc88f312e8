package family

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/metrics"
)

// manySeries writes a family with the labels from, from+1, and so on below to.
func manySeries(name, typ string, from, to int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# TYPE %s %s\n", name, typ)
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "%s{l=\"%03d\"} 1\n", name, i)
	}
	return b.String()
}

// A family is refused beside one of a live instance whose lines would have its names.
// It displaces those that no live instance has.
func TestCollisionsWithOthers(t *testing.T) {
	const (
		gauge     = "# TYPE x gauge\nx 1\n"
		counter   = "# TYPE x counter\nx 1\n"
		histogram = "# TYPE x histogram\nx_bucket{le=\"+Inf\"} 1\nx_sum 1\nx_count 1\n"
		count     = "# TYPE x_count gauge\nx_count 1\n"
	)
	for _, c := range []struct {
		theirs, ours string
		want         metrics.Reason // if they are alive; "": none
		displaced    string         // if they are gone
	}{
		{gauge, gauge, "", ""},
		{gauge, counter, reasonTypeMismatch, "x"},
		{histogram, counter, reasonTypeMismatch, "x"},
		{histogram, count, reasonNameCollision, "x"},
		{count, histogram, reasonNameCollision, "x_count"},
		{count, gauge, "", ""},
	} {
		theirs := admit(t, nil, c.theirs).Families
		for _, alive := range []bool{true, false} {
			a := &Admission{
				Limits: limits, Received: received, Types: ChooseTypes([]Set{theirs}), Live: make(map[string]bool), MaxRowLines: math.MaxInt,
			}
			if alive {
				a.Live[theirs.Names()[0]] = true
			}
			types, live := maps.Clone(a.Types), maps.Clone(a.Live)
			snapshot := decode(t, c.ours)
			got := a.Admit(snapshot)
			require.Equal(t, got, a.Admit(snapshot), "it can be decided again")
			require.Equal(t, types, a.Types)
			require.Equal(t, live, a.Live)
			require.Equal(t, decode(t, c.ours), snapshot, "it is as it was decoded")

			if alive && c.want != "" {
				require.Empty(t, got.Families)
				require.Equal(t, c.want, got.Refused[0][0].Reason, "%q beside %q", c.ours, c.theirs)
				continue
			}
			require.Empty(t, got.Refused[0])
			require.Len(t, got.Families, 1)
			require.Equal(t, got.Families.Lines(), got.Lines)
			displaced := slices.Collect(maps.Keys(got.Displaced))
			if c.displaced == "" || alive {
				require.Empty(t, displaced)
			} else {
				require.Equal(t, []string{c.displaced}, displaced)
			}
		}
	}
}

// Each limit on lines refuses series beyond it, with its own reason and option. What
// the instance has comes first.
func TestRoom(t *testing.T) {
	old := admit(t, nil, manySeries("b_total", "counter", 0, 10)).Families
	for name, c := range map[string]struct {
		change func(*Admission)
		want   metrics.Reason
		option string
	}{
		"instance": {func(a *Admission) { a.Limits.MaxSeries = 30 }, reasonTooManySeries, "(--max-pushed-series)"},
		"all":      {func(a *Admission) { a.Limits.MaxTotalSeries, a.LiveLines = 130, 100 }, reasonTooManySeries, "(--max-pushed-series-total)"},
		"row":      {func(a *Admission) { a.MaxRowLines = 30 }, reasonTooManyBytes, "(--max-push-row-bytes)"},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Admission{Limits: limits, Received: received, Old: old, Types: ChooseTypes([]Set{old}), MaxRowLines: math.MaxInt}
			c.change(a)
			got := a.Admit(decode(t, manySeries("a_total", "counter", 0, 25)+manySeries("b_total", "counter", 5, 20)))
			require.Equal(t, 30, got.Lines)
			require.Equal(t, 30, got.Families.Lines())
			require.Len(t, got.Families["b_total"].Series, 20, "it is known")
			require.Len(t, got.Families["a_total"].Series, 10)
			require.Len(t, got.Refused[0], 1)
			require.Empty(t, got.Refused[1])
			r := got.Refused[0][0]
			require.Equal(t, c.want, r.Reason)
			require.Equal(t, OfSeries, r.Scope)
			require.Equal(t, 15, r.Count)
			require.Contains(t, r.Message, c.option)
			require.True(t, got.Refused[0].NeedRoom())
		})
	}
}

// What an instance counted before is kept, whatever becomes of the snapshot. Gauges
// that it does not push any more are gone.
func TestCountsAreKept(t *testing.T) {
	old := admit(t, nil, "# TYPE a_total counter\na_total 5\n# TYPE b_total counter\nb_total 5\n# TYPE g gauge\ng 5\n").Families
	next := admit(t, old, "# TYPE a_total counter\na_total 2\n").Families
	require.ElementsMatch(t, []string{"a_total", "b_total"}, next.Names())
	require.Equal(t, ExactSum{5}, next["a_total"].Series[0].Base, "it began anew")
	require.Equal(t, 2.0, next["a_total"].Series[0].Value)
	require.Same(t, old["b_total"], next["b_total"])

	raw := serialize(t, parseText(t, "# TYPE a_total counter\na_total 3\n")...)[0]
	a := &Admission{Limits: limits, Received: received, Old: next, Types: ChooseTypes([]Set{next}), MaxRowLines: math.MaxInt}
	refused := a.Admit(DecodeSnapshot([][]byte{append(raw, 0xff)}, limits, received, false)).Families
	require.True(t, refused["a_total"].Series[0].Refused)
	require.False(t, next["a_total"].Series[0].Refused, "sets do not change")
	require.Equal(t, 2.0, refused["a_total"].Series[0].Value)
}

// Of colliding families of several instances the first set's is served.
func TestChooseTypes(t *testing.T) {
	newest := admit(t, nil, "# TYPE x gauge\nx 1\n").Families
	older := admit(t, nil, "# TYPE x counter\nx 1\n# TYPE y summary\ny_sum 1\ny_count 1\n").Families
	oldest := admit(t, nil, "# TYPE y_count gauge\ny_count 1\n# TYPE z gauge\nz 1\n").Families
	types := ChooseTypes([]Set{newest, older, oldest})
	require.Equal(t, Types{"x": metrics.Gauge, "y": metrics.Summary, "z": metrics.Gauge}, types)
	require.True(t, types.Include(newest["x"]))
	require.False(t, types.Include(older["x"]))
	require.False(t, types.Include(oldest["y_count"]))
	require.ElementsMatch(t, []string{"y"}, older.OfTypes(types).Names())
	require.Len(t, older, 2)
	next := ChooseTypes([]Set{older, oldest})
	require.ElementsMatch(t, []string{"x"}, types.Diff(next))
	require.ElementsMatch(t, []string{"x", "y"}, next.Diff(Types{"x": metrics.Gauge, "z": metrics.Gauge}))
}
