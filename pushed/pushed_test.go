package pushed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/metrics"
)

// start is ahead of the clock, by which Load decides what is gone: however long the
// tests take, what was pushed at start is not.
var start = time.Now().Add(time.Hour)

const everyKind = `
# HELP coderd_api_requests_processed_total other help
# TYPE coderd_api_requests_processed_total counter
coderd_api_requests_processed_total{code="200",method="GET",path="/"} 10
coderd_api_requests_processed_total{code="404",method="GET",path=""} 1.5
# HELP new_queue_seconds Time in \\ the\nqueue
# TYPE new_queue_seconds histogram
new_queue_seconds_bucket{q="a\"\\\n",le="1"} 2
new_queue_seconds_bucket{q="a\"\\\n",le="5"} 3
new_queue_seconds_bucket{q="a\"\\\n",le="+Inf"} 4
new_queue_seconds_sum{q="a\"\\\n"} 20.25
new_queue_seconds_count{q="a\"\\\n"} 4
# TYPE new_size_bytes summary
new_size_bytes{quantile="0.5"} 3
new_size_bytes_sum 30
new_size_bytes_count 3
# TYPE coderd_api_concurrent_requests gauge
coderd_api_concurrent_requests 7
# TYPE coderd_license_active_users gauge
coderd_license_active_users 20
# TYPE coderd_workspace_creation_total counter
coderd_workspace_creation_total{template_name="t"} 9
# TYPE new_untyped untyped
new_untyped NaN
`

func TestTwoInstances(t *testing.T) {
	f := open(t, new(memory), Options{})
	require.Empty(t, text(t, f))
	require.Empty(t, pushText(t, f, start, 1, 1, everyKind))
	require.Empty(t, pushText(t, f, start.Add(time.Second), 2, 1, everyKind))
	require.Equal(t, `# HELP coderd_api_concurrent_requests The number of concurrent API requests.
# TYPE coderd_api_concurrent_requests gauge
coderd_api_concurrent_requests 14
# HELP coderd_api_requests_processed_total The total number of processed API requests
# TYPE coderd_api_requests_processed_total counter
coderd_api_requests_processed_total{code="200",method="GET",path="/"} 20
coderd_api_requests_processed_total{code="404",method="GET"} 3
# HELP coderd_license_active_users The number of active users.
# TYPE coderd_license_active_users gauge
coderd_license_active_users 20
# HELP coderd_workspace_creation_total Total regular (non-prebuilt) workspace creations by organization, template, and preset.
# TYPE coderd_workspace_creation_total counter
coderd_workspace_creation_total{template_name="t"} 9
# HELP new_queue_seconds Time in \\ the\nqueue
# TYPE new_queue_seconds histogram
new_queue_seconds_bucket{q="a\"\\\n",le="1"} 4
new_queue_seconds_bucket{q="a\"\\\n",le="5"} 6
new_queue_seconds_bucket{q="a\"\\\n",le="+Inf"} 8
new_queue_seconds_sum{q="a\"\\\n"} 40.5
new_queue_seconds_count{q="a\"\\\n"} 8
# TYPE new_size_bytes summary
new_size_bytes_sum 60
new_size_bytes_count 6
# TYPE new_untyped untyped
new_untyped NaN
`, text(t, f))
	check(t, f)
}

// A counter that falls was reset; what is absent keeps counting; of the
// documented maximum the largest value stays.
func TestCounters(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	const family = "# TYPE x_total counter\n"
	total := func() float64 { return check(t, f)[`{__name__="x_total", l="a"}`] }
	pushText(t, f, start, 1, 1, family+"x_total{l=\"a\"} 5\nx_total{l=\"b\"} 1\n")
	require.Equal(t, 5.0, total())
	pushText(t, f, start, 1, 2, family+"x_total{l=\"a\"} 3\n")
	require.Equal(t, 8.0, total())
	require.Equal(t, 1.0, check(t, f)[`{__name__="x_total", l="b"}`])
	pushText(t, f, start, 1, 3, "")
	require.Equal(t, 8.0, total())
	// The same snapshot again, and an older one, count nothing.
	pushText(t, f, start, 1, 3, family+"x_total{l=\"a\"} 100\n")
	pushText(t, f, start, 1, 2, family+"x_total{l=\"a\"} 100\n")
	require.Equal(t, 8.0, total())
	// After a restart of the service the instance goes on.
	f = open(t, store, Options{})
	require.Equal(t, 8.0, total())
	pushText(t, f, start, 1, 4, family+"x_total{l=\"a\"} 4\n")
	require.Equal(t, 9.0, total())
	pushText(t, f, start, 2, 1, family+"x_total{l=\"a\"} 4\n")
	require.Equal(t, 13.0, total())

	const created = "# TYPE coderd_workspace_creation_total counter\ncoderd_workspace_creation_total "
	for i, step := range []struct{ id, value, want float64 }{{1, 5, 5}, {2, 7, 7}, {2, 3, 7}, {1, 8, 8}, {3, 1, 8}} {
		pushText(t, f, start, byte(step.id), int64(10+i), created+string('0'+rune(step.value))+"\n")
		require.Equal(t, step.want, check(t, f)[`{__name__="coderd_workspace_creation_total"}`])
	}
}

// An error of the store changes nothing, and the snapshot can be sent again.
func TestStoreFails(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	const family = "# TYPE x_total counter\nx_total "
	pushText(t, f, start, 1, 1, family+"5\n")
	want := text(t, f)
	store.fail(errors.New("disk full"))
	p := agent.Push{Instance: instanceID(1), Snapshot: 2, Families: serialize(t, parseText(t, family+"7\n")...)}
	_, err := f.Push(t.Context(), start, p)
	require.ErrorContains(t, err, "disk full")
	require.Equal(t, want, text(t, f))
	require.ErrorContains(t, f.Healthy(), "disk full")
	store.fail(nil)
	_, err = f.Push(t.Context(), start, p)
	require.NoError(t, err)
	require.NoError(t, f.Healthy())
	require.Equal(t, 7.0, check(t, f)[`{__name__="x_total"}`])
}

func TestGaugesLive(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := open(t, new(memory), Options{SeriesTTL: time.Minute, OwnFor: 5 * time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		const snapshot = `
# TYPE coderd_api_concurrent_requests gauge
coderd_api_concurrent_requests 1
# TYPE coderd_license_active_users gauge
coderd_license_active_users %
# TYPE x_total counter
x_total 1
`
		push := func(id byte, number int64, interval time.Duration, value string, final bool) {
			_, err := f.Push(t.Context(), time.Now(), agent.Push{
				Instance: instanceID(id), Snapshot: number, Interval: interval, Final: final,
				Families: serialize(t, parseText(t, strings.ReplaceAll(snapshot, "%", value))...),
			})
			require.NoError(t, err)
		}
		serves := func(sum, sticky float64) {
			t.Helper()
			synctest.Wait()
			samples := check(t, f)
			require.Equal(t, sum, samples[`{__name__="coderd_api_concurrent_requests"}`])
			require.Equal(t, sticky, samples[`{__name__="coderd_license_active_users"}`])
			require.Positive(t, samples[`{__name__="x_total"}`])
		}
		push(1, 1, 10*time.Second, "11", false)
		time.Sleep(time.Second)
		push(2, 1, 40*time.Second, "22", false)
		serves(2, 11) // sticks to the first
		time.Sleep(59*time.Second - time.Nanosecond)
		serves(2, 11)
		time.Sleep(time.Nanosecond)
		serves(1, 22) // one minute after its push
		push(1, 2, 10*time.Second, "12", false)
		serves(2, 22)
		push(2, 2, 40*time.Second, "23", true)
		serves(1, 12)
		push(2, 3, 40*time.Second, "24", false)
		push(1, 3, 10*time.Second, "13", true)
		serves(1, 24)
		time.Sleep(2*time.Minute - time.Nanosecond)
		serves(1, 24)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.NotContains(t, text(t, f), "coderd_")

		// Names stay reserved for a while after.
		want := map[string]metrics.Type{
			"coderd_api_concurrent_requests": metrics.Gauge, "coderd_license_active_users": metrics.Gauge, "x_total": metrics.Counter,
		}
		require.Equal(t, want, f.reserver.(*reserver).get())
		time.Sleep(5*time.Minute - time.Nanosecond)
		synctest.Wait()
		require.Equal(t, want, f.reserver.(*reserver).get())
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.Equal(t, map[string]metrics.Type{"x_total": metrics.Counter}, f.reserver.(*reserver).get())
		cancel()
		require.NoError(t, <-done)
	})
}

// Of the families that describe a state of the world each series comes from
// whoever changed it last.
func TestNewestGauge(t *testing.T) {
	f := open(t, new(memory), Options{})
	const family = "# TYPE coderd_oauth2_external_requests_rate_limit_remaining gauge\n"
	line := func(resource, value string) string {
		return "coderd_oauth2_external_requests_rate_limit_remaining{resource=\"" + resource + "\"} " + value + "\n"
	}
	pushText(t, f, start, 1, 1, family+line("core", "50")+line("search", "9"))
	pushText(t, f, start.Add(1), 2, 1, family+line("core", "40"))
	pushText(t, f, start.Add(2), 1, 2, family+line("core", "50")+line("search", "8"))
	got := check(t, f)
	require.Equal(t, 40.0, got[`{__name__="coderd_oauth2_external_requests_rate_limit_remaining", resource="core"}`])
	require.Equal(t, 8.0, got[`{__name__="coderd_oauth2_external_requests_rate_limit_remaining", resource="search"}`])
}

// Gauges that the catalogue does not know are sticky series by series. A series of only
// one instance is served, too. Of a series of several instances one stays.
func TestGuessedGauge(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	x := func(lines string) string { return "# TYPE x gauge\n" + lines }
	served := func(want map[string]float64) {
		t.Helper()
		for _, f := range []*Families{f, open(t, store, Options{})} {
			got := check(t, f)
			require.Len(t, got, len(want))
			for label, v := range want {
				require.Equal(t, v, got[`{__name__="x", l="`+label+`"}`], label)
			}
		}
	}
	pushText(t, f, start, 2, 1, x("x{l=\"both\"} 20\nx{l=\"b\"} 21\n"))
	pushText(t, f, start.Add(1), 1, 1, x("x{l=\"both\"} 10\nx{l=\"a\"} 11\n"))
	served(map[string]float64{"both": 20, "a": 11, "b": 21})
	pushText(t, f, start.Add(2), 2, 2, x("x{l=\"b\"} 22\n"))
	served(map[string]float64{"both": 10, "a": 11, "b": 22})
	pushText(t, f, start.Add(3), 2, 3, x("x{l=\"both\"} 23\nx{l=\"b\"} 23\n"))
	served(map[string]float64{"both": 10, "a": 11, "b": 23})
	pushText(t, f, start.Add(4), 1, 2, x("x{l=\"both\"} 12\n"))
	served(map[string]float64{"both": 12, "b": 23})
	_, err := f.Push(t.Context(), start.Add(5), agent.Push{Instance: instanceID(1), Snapshot: 3, Final: true})
	require.NoError(t, err)
	served(map[string]float64{"both": 23, "b": 23})
}

// An operator's way of merging wins over what is documented and over the guess.
func TestMergeOverrides(t *testing.T) {
	store := new(memory)
	opts := Options{Merge: map[string]metrics.Merge{
		"x": metrics.MergeSum, "y": metrics.MergeMin, "z": metrics.MergeSticky, "x_total": metrics.MergeMax, "h": metrics.MergeSticky,
		"coderd_workspace_creation_total": metrics.MergeSum, "s": metrics.MergeMax,
	}}
	snapshot := func(v string) string {
		return strings.ReplaceAll(`
# TYPE x gauge
x V
# TYPE y gauge
y V
# TYPE z gauge
z{l="V"} V
# TYPE x_total counter
x_total V
# TYPE h histogram
h_bucket{le="1"} V
h_bucket{le="+Inf"} V
h_sum V
h_count V
# TYPE s summary
s_sum V
s_count V
# TYPE coderd_workspace_creation_total counter
coderd_workspace_creation_total V
`, "V", v)
	}
	served := func(want map[string]float64) {
		t.Helper()
		f := open(t, store, opts)
		got := check(t, f)
		for name, v := range want {
			require.Equal(t, v, got[`{__name__="`+name+`"}`], name)
		}
		require.Equal(t, 1.0, got[`{__name__="z", l="1"}`])
		require.NotContains(t, got, `{__name__="z", l="3"}`)
	}
	f := open(t, store, opts)
	pushText(t, f, start, 1, 1, snapshot("1"))
	pushText(t, f, start.Add(1), 2, 1, snapshot("3"))
	served(map[string]float64{"x": 4, "y": 1, "x_total": 3, "h_count": 3, "h_sum": 3, "s_count": 3, "coderd_workspace_creation_total": 4})
	// A process that begins anew has not read the database yet.
	pushText(t, f, start.Add(2), 2, 2, snapshot("2"))
	served(map[string]float64{"x": 3, "y": 1, "x_total": 3, "h_count": 3, "h_sum": 3, "s_count": 3, "coderd_workspace_creation_total": 6})
	_, err := f.Push(t.Context(), start.Add(3), agent.Push{Instance: instanceID(2), Snapshot: 3, Final: true})
	require.NoError(t, err)
	require.NoError(t, f.foldIdle(t.Context(), start.Add(25*time.Hour)))
	require.Len(t, store.rows, 3)
	served(map[string]float64{"x": 1, "y": 1, "x_total": 3, "h_count": 3, "s_count": 3, "coderd_workspace_creation_total": 6})
}

func TestNotLoaded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store := new(memory)
		before := open(t, store, Options{})
		pushText(t, before, time.Now(), 1, 1, "# TYPE x_total counter\nx_total 3\n")
		store.fail(errors.New("locked"))
		f, _ := newUnloaded(t, store)
		require.Error(t, f.Healthy())
		_, err := f.Push(t.Context(), time.Now(), agent.Push{Instance: instanceID(1), Snapshot: 2})
		require.ErrorContains(t, err, "not loaded")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		synctest.Wait()
		require.ErrorContains(t, f.Healthy(), "locked")
		store.fail(nil)
		time.Sleep(maxRetry)
		synctest.Wait()
		require.NoError(t, f.Healthy())
		require.Equal(t, 3.0, check(t, f)[`{__name__="x_total"}`])
		cancel()
		require.NoError(t, <-done)
	})
}

// Types and names that collide: what is served stays, unless nobody who is
// alive pushes it.
func TestCollisions(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	const counter, gauge = "# TYPE x counter\nx 5\n", "# TYPE x gauge\nx 6\n"
	const count = "# TYPE y_count gauge\ny_count 1\n"
	const summary = "# TYPE y summary\ny_sum 2\ny_count 2\n"
	require.Empty(t, pushText(t, f, start, 1, 1, counter+summary))
	refused := pushText(t, f, start, 2, 1, gauge+count)
	require.Equal(t, []string{"x", "y_count"}, []string{refused[0].Name, refused[1].Name})
	require.Equal(t, []string{"type_mismatch", "name_collision"}, []string{refused[0].Reason, refused[1].Reason})
	require.Equal(t, refused, pushText(t, f, start, 2, 1, ""), "a duplicate is answered alike")
	require.Equal(t, map[string]float64{`{__name__="x"}`: 5, `{__name__="y_sum"}`: 2, `{__name__="y_count"}`: 2}, check(t, f))

	// In one snapshot the first is served.
	z := parseText(t, "# TYPE z histogram\nz_bucket{le=\"+Inf\"} 1\nz_sum 1\nz_count 1\n")[0]
	refused, err := f.Push(t.Context(), start, agent.Push{
		Instance: instanceID(3), Snapshot: 1,
		Families: serialize(t, z, parseText(t, "# TYPE z_bucket untyped\nz_bucket 1\n")[0], z),
	})
	require.NoError(t, err)
	require.Len(t, refused, 2)
	require.Equal(t, "duplicate_family", refused[1].Reason)
	require.Equal(t, "z_bucket", refused[0].Name)

	_, err = f.Push(t.Context(), start.Add(time.Second), agent.Push{
		Instance: instanceID(1), Snapshot: 2, Final: true, Families: serialize(t, parseText(t, counter+summary)...),
	})
	require.NoError(t, err)
	require.Empty(t, pushText(t, f, start.Add(2*time.Second), 2, 2, gauge+count))
	for range 2 {
		got := check(t, f)
		require.Equal(t, 6.0, got[`{__name__="x"}`])
		require.Equal(t, 1.0, got[`{__name__="y_count"}`])
		require.NotContains(t, got, `{__name__="y_sum"}`)
		f = open(t, store, Options{})
	}
}

func TestLimits(t *testing.T) {
	f := open(t, new(memory), Options{MaxFamilies: 2, MaxSeries: 3, MaxTotalSeries: 4, MaxInstances: 2})
	refused := pushText(t, f, start, 1, 1, "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE c gauge\nc 1\n")
	require.Len(t, refused, 1)
	require.Equal(t, "too_many_families", refused[0].Reason)
	refused = pushText(t, f, start, 1, 2, "# TYPE a gauge\na 1\n# TYPE b gauge\nb{l=\"1\"} 1\nb{l=\"2\"} 1\nb{l=\"3\"} 1\n")
	require.Equal(t, []agent.PushRefusal{{Name: "b", Reason: "too_many_series", Message: "no room: at most 3 of one instance (--max-pushed-series)", Series: 1}}, refused)
	require.Equal(t, "# TYPE a gauge\na 1\n# TYPE b gauge\nb{l=\"1\"} 1\nb{l=\"2\"} 1\n", text(t, f))
	// What is counted stays, though it is not pushed any more, as long as there is
	// room; the oldest goes first.
	for snapshot := range int64(5) {
		name := string('a' + rune(snapshot))
		pushText(t, f, start, 1, 3+snapshot, "# TYPE a_total counter\na_total{l=\""+name+"\"} 1\n")
	}
	require.Len(t, check(t, f), 4)
	require.NotContains(t, text(t, f), `{l="a"}`)
	require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.forgotten))
	refused = pushText(t, f, start, 2, 1, "# TYPE b gauge\nb{l=\"1\"} 1\nb{l=\"2\"} 1\nb{l=\"3\"} 1\n")
	require.Equal(t, "no room: at most 4 of all instances that are alive (--max-pushed-series-total)", refused[0].Message)
	_, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(3), Snapshot: 1})
	require.ErrorContains(t, err, "2 instances are alive")
	require.ErrorIs(t, err, agent.ErrNoRoom)
	require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.pushes.WithLabelValues(outcomeNoRoom)))
	_, err = f.Push(t.Context(), start, agent.Push{Snapshot: 1})
	require.ErrorContains(t, err, "all zero")
	require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.refused.WithLabelValues("too_many_families")))
	var ten [][]byte
	for n := range 10 {
		ten = append(ten, serialize(t, parseText(t, fmt.Sprintf("# TYPE g%d gauge\ng%d 1\n", n, n))...)...)
	}
	_, err = f.Push(t.Context(), start, agent.Push{Instance: instanceID(2), Snapshot: 2, Families: ten})
	require.NoError(t, err)
	require.Equal(t, 1+8.0, testutil.ToFloat64(f.metrics.refused.WithLabelValues("too_many_families")))
	require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.pushes.WithLabelValues(outcomeInvalid)))

	tiny := open(t, new(memory), Options{MaxRowBytes: 20})
	_, err = tiny.Push(t.Context(), start, agent.Push{Instance: instanceID(1), Snapshot: 1})
	require.ErrorContains(t, err, "bytes to store, at most 20")
	require.ErrorIs(t, err, agent.ErrNoRoom)
}

// Exemplars and created timestamps reach protobuf: the newest, the earliest.
func TestExemplars(t *testing.T) {
	f := open(t, new(memory), Options{})
	family := func(value float64, created, at int64) *dto.MetricFamily {
		return &dto.MetricFamily{
			Name: proto.String("x_total"), Type: dto.MetricType_COUNTER.Enum(),
			Metric: []*dto.Metric{{Counter: &dto.Counter{
				Value: &value, CreatedTimestamp: createdAt(created), Exemplar: exemplarOf(value, at),
			}}},
		}
	}
	for i, m := range []*dto.MetricFamily{family(1, 500, 10), family(2, 400, 30), family(4, 600, 20)} {
		_, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(byte(1 + i)), Snapshot: 1, Families: serialize(t, m)})
		require.NoError(t, err)
	}
	got := families(t, f)["x_total"].Metric[0].Counter
	require.Equal(t, 7.0, got.GetValue())
	require.Equal(t, 400, got.CreatedTimestamp.AsTime().Nanosecond())
	require.Equal(t, 2.0, got.Exemplar.GetValue())
	require.Equal(t, "trace", got.Exemplar.Label[0].GetName())
}

// Another replica, and this one after a restart, serves the same exemplars: of
// counters, of buckets, and of native histograms.
func TestExemplarsAreStored(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	counted := counterOf(map[string]float64{"a": 1}, func(_ string, m *dto.Metric) { m.Counter.Exemplar = exemplarOf(1, 10) })
	classic := parseText(t, "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 6\nh_count 2\n")[0]
	classic.Metric[0].Histogram.Bucket[0].Exemplar = exemplarOf(0.5, 20)
	classic.Metric[0].Histogram.Bucket[1].Exemplar = exemplarOf(5.5, 30)
	native := nativeFamily("n", 1)
	native.Metric[0].Histogram.Exemplars = []*dto.Exemplar{exemplarOf(1, 40)}
	require.Empty(t, push(t, f, start, 1, 1, false, counted, classic, native))

	buckets := families(t, f)["h"].Metric[0].Histogram.Bucket
	require.Equal(t, 0.5, buckets[0].Exemplar.GetValue())
	require.Equal(t, 5.5, buckets[1].Exemplar.GetValue())
	require.Equal(t, protobuf(t, f), protobuf(t, open(t, store, Options{})))
}
