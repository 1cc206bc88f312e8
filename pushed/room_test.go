package pushed

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// manyCounters are n series of x_total, of one each, from the series first on.
func manyCounters(first, n int) string {
	var b strings.Builder
	b.WriteString("# TYPE x_total counter\n")
	for i := range n {
		fmt.Fprintf(&b, "x_total{path=\"%d\"} 1\n", first+i)
	}
	return b.String()
}

// sum is what all series of x_total count together, and how many they are.
func sum(t *testing.T, f *Families) (v float64, n int) {
	t.Helper()
	for name, value := range check(t, f) {
		if strings.Contains(name, `"x_total"`) {
			v, n = v+value, n+1
		}
	}
	return v, n
}

// Three coderds that restart again and again, each time under a new instance id,
// block nobody: what counts against the limits is alive.
func TestRestartsBlockNobody(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{MaxSeries: 200, MaxTotalSeries: 1000})
	now := start
	for n := range 30 {
		for replica := range 3 {
			now = now.Add(time.Second)
			require.Empty(t, pushText(t, f, now, byte(1+3*n+replica), 1, manyCounters(0, 100)))
			v, series := sum(t, f)
			require.Equal(t, float64(100*(3*n+replica+1)), v, "restart %d: nothing falls", n)
			require.Equal(t, 100, series)
		}
		now = now.Add(time.Hour)
		f.expire(now)
		require.LessOrEqual(t, f.view.Load().series, 1000)
	}
	require.Positive(t, testutil.ToFloat64(f.metrics.folded))
	require.Zero(t, testutil.ToFloat64(f.metrics.forgotten))
	restarted := open(t, store, Options{})
	v, _ := sum(t, restarted)
	require.Equal(t, 9000.0, v)
}

// Series of live instances have room before those that only gone ones counted. Of the
// latter the oldest are removed first.
func TestAliveComeFirst(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{MaxSeries: 100, MaxTotalSeries: 100})
	now := start
	for n := range 5 { // each has 20 series of its own, and the first 5
		now = now.Add(time.Hour)
		f.expire(now)
		require.Empty(t, pushText(t, f, now, byte(1+n), 1, manyCounters(0, 5)+strings.TrimPrefix(manyCounters(100*(1+n), 20), "# TYPE x_total counter\n")))
	}
	now = now.Add(time.Hour)
	f.expire(now)
	require.Empty(t, pushText(t, f, now, 50, 1, manyCounters(0, 60)))
	got := check(t, f)
	require.Equal(t, 6.0, got[`{__name__="x_total", path="4"}`], "nothing falls of what is pushed")
	require.Equal(t, 1.0, got[`{__name__="x_total", path="59"}`])
	require.Equal(t, 1.0, got[`{__name__="x_total", path="500"}`], "the newest stay")
	require.NotContains(t, got, `{__name__="x_total", path="100"}`)
	require.LessOrEqual(t, f.view.Load().series, 100)
	require.Positive(t, testutil.ToFloat64(f.metrics.forgotten))

	// Those who are alive are limited together.
	refused := pushText(t, f, now, 51, 1, manyCounters(0, 60))
	require.Equal(t, []agent.PushRefusal{{
		Name: "x_total", Reason: "too_many_series", Message: "20 series, the first: no room: at most 100 of all instances that are alive (--max-pushed-series-total)", Series: 20,
	}}, refused)
	require.Equal(t, 20.0, testutil.ToFloat64(f.metrics.refusedSeries.WithLabelValues("too_many_series")))
	f.expire(now.Add(time.Hour))
	require.Empty(t, pushText(t, f, now.Add(time.Hour), 51, 2, manyCounters(0, 100)))
	require.Equal(t, check(t, f), check(t, open(t, store, Options{MaxTotalSeries: 100})))
}

// An instance whose series come and go has room for those that it has. Counts of series
// that it does not push any more move to the totals.
func TestSeriesThatComeAndGo(t *testing.T) {
	store := new(memory)
	a, b := open(t, store, Options{MaxSeries: 100}), open(t, store, Options{MaxSeries: 100})
	for n := range int64(50) {
		f := []*Families{a, b}[n%2]
		require.Empty(t, pushText(t, f, start, 1, 1+n, manyCounters(int(n)*30, 60)))
		v, series := sum(t, f)
		require.Equal(t, 60+30*int(n), series)
		require.Equal(t, float64(60+30*n), v)
		require.LessOrEqual(t, f.instances[instanceID(1)].lines, 100)
	}
	follow(t, a, start)
	require.Equal(t, text(t, a), text(t, b))
	require.Equal(t, text(t, a), text(t, open(t, store, Options{})))
	// What does not fit alone is refused by series, those that are known come first.
	refused := pushText(t, a, start, 1, 51, manyCounters(1470, 60)+strings.TrimPrefix(manyCounters(0, 90), "# TYPE x_total counter\n"))
	require.Len(t, refused, 1)
	require.Equal(t, "50 series, the first: no room: at most 100 of one instance (--max-pushed-series)", refused[0].Message)
	require.Equal(t, 1.0, check(t, a)[`{__name__="x_total", path="1529"}`])
}
