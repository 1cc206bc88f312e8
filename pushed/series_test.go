package pushed

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// counterOf has a series for each label, of which some are changed.
func counterOf(values map[string]float64, change func(label string, m *dto.Metric)) *dto.MetricFamily {
	f := &dto.MetricFamily{Name: proto.String("x_total"), Type: dto.MetricType_COUNTER.Enum()}
	for label, v := range values {
		m := &dto.Metric{Label: []*dto.LabelPair{{Name: proto.String("l"), Value: &label}}, Counter: &dto.Counter{Value: &v}}
		if change != nil {
			change(label, m)
		}
		f.Metric = append(f.Metric, m)
	}
	return f
}

func push(t *testing.T, f *Families, now time.Time, id byte, snapshot int64, final bool, families ...*dto.MetricFamily) []agent.PushRefusal {
	t.Helper()
	refused, err := f.Push(t.Context(), now, agent.Push{
		Instance: instanceID(id), Snapshot: snapshot, Interval: time.Second, Final: final, Families: serialize(t, families...),
	})
	require.NoError(t, err)
	return refused
}

// requireServed compares the series of x_total with those of a replica, and of one
// that starts now.
func requireServed(t *testing.T, f *Families, store Store, want map[string]float64) {
	t.Helper()
	for _, f := range []*Families{f, open(t, store, f.Options())} {
		got := make(map[string]float64)
		for key, v := range check(t, f) {
			if label, ok := strings.CutPrefix(key, `{__name__="x_total", l="`); ok {
				got[strings.TrimSuffix(label, `"}`)] = v
			}
		}
		require.Equal(t, want, got)
	}
}

// A bad series is refused alone, and the others are stored. Its earlier count is served
// only if another instance has the series, too.
func TestSeriesIsRefusedAlone(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	nan := func(label string, m *dto.Metric) {
		if label == "a" {
			m.Counter.Value = proto.Float64(math.NaN())
		}
	}
	require.Empty(t, push(t, f, start, 1, 1, false, counterOf(map[string]float64{"a": 10, "b": 1}, nil)))
	refused := push(t, f, start, 1, 2, false, counterOf(map[string]float64{"a": 11, "b": 2}, nan))
	require.Equal(t, []agent.PushRefusal{{
		Name: "x_total", Reason: "invalid_counter", Message: `{l="a"}: counter of NaN: want a number from 0 to 2^64`, Series: 1,
	}}, refused)
	require.Equal(t, 1.0, testutil.ToFloat64(f.metrics.refusedSeries.WithLabelValues("invalid_counter")))
	requireServed(t, f, store, map[string]float64{"b": 2})

	// Beside another instance nothing falls, and the other counts on.
	require.Empty(t, push(t, f, start, 2, 1, false, counterOf(map[string]float64{"a": 7}, nil)))
	requireServed(t, f, store, map[string]float64{"a": 17, "b": 2})
	require.Empty(t, push(t, f, start, 2, 2, false, counterOf(map[string]float64{"a": 8}, nil)))
	requireServed(t, f, store, map[string]float64{"a": 18, "b": 2})
	require.Empty(t, push(t, f, start, 2, 3, true))
	requireServed(t, f, store, map[string]float64{"b": 2})
	require.Empty(t, push(t, f, start, 1, 3, false, counterOf(map[string]float64{"a": 12, "b": 3}, nil)))
	requireServed(t, f, store, map[string]float64{"a": 20, "b": 3})

	// When nobody pushes it any more, what was counted is served again.
	push(t, f, start, 1, 4, false, counterOf(map[string]float64{"a": 13, "b": 4}, nan))
	requireServed(t, f, store, map[string]float64{"b": 4})
	f.expire(start.Add(time.Hour))
	require.Equal(t, 20.0, check(t, f)[`{__name__="x_total", l="a"}`])
	require.NoError(t, f.foldIdle(t.Context(), start.Add(25*time.Hour)))
	require.Equal(t, 20.0, check(t, f)[`{__name__="x_total", l="a"}`])
}

// A family that is refused as a whole is not served on either, whatever can be
// notified of it.
func TestRefusedFamilyIsNotServedOn(t *testing.T) {
	good := counterOf(map[string]float64{"a": 10}, nil)
	gauge := &dto.MetricFamily{Name: good.Name, Type: dto.MetricType_GAUGE_HISTOGRAM.Enum()}
	raw := serialize(t, good)[0]
	for name, families := range map[string][][]byte{
		"unknown type": serialize(t, gauge),
		"malformed":    {append(raw[:len(raw):len(raw)], 0xff)},
		"too many":     append(serialize(t, parseText(t, "# TYPE g gauge\ng 1\n")...), raw),
	} {
		t.Run(name, func(t *testing.T) {
			store := new(memory)
			f := open(t, store, Options{MaxFamilies: 1})
			push(t, f, start, 1, 1, false, good)
			requireServed(t, f, store, map[string]float64{"a": 10})
			p := agent.Push{Instance: instanceID(1), Snapshot: 2, Families: families}
			refused, err := f.Push(t.Context(), start, p)
			require.NoError(t, err)
			require.Len(t, refused, 1)
			require.Equal(t, "x_total", refused[0].Name)
			requireServed(t, f, store, map[string]float64{})
			push(t, f, start, 1, 3, false, counterOf(map[string]float64{"a": 12}, nil))
			requireServed(t, f, store, map[string]float64{"a": 12})
		})
	}
}

// Both limits of labels can be set, and are named where they are met.
func TestLimitsOfLabels(t *testing.T) {
	f := open(t, new(memory), Options{MaxLabelValueBytes: 10, MaxLabelsBytes: 8})
	refused := push(t, f, start, 1, 1, false, counterOf(map[string]float64{"a": 1, "12345678901": 2}, nil))
	require.Len(t, refused, 1)
	require.Equal(t, "value of label l of 11 bytes, at most 10 (--max-pushed-label-value-bytes)", refused[0].Message)
	refused = push(t, f, start, 1, 2, false, counterOf(map[string]float64{"a": 1, "1234567890": 2}, nil))
	require.Len(t, refused, 1)
	require.Equal(t, "labels of more than 8 bytes (--max-pushed-labels-bytes)", refused[0].Message)
}

// A label as long as coderd's parameters is valid. A longer one is refused with its
// series. A series with a wrong exemplar or created timestamp is served.
func TestLongLabelsAndWrongValues(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	long, tooLong := strings.Repeat("x", 32<<10), strings.Repeat("y", 32<<10+1)
	refused := push(t, f, start, 1, 1, false, counterOf(map[string]float64{"a": 1, long: 2, tooLong: 3, tooLong + "z": 4}, nil))
	require.Equal(t, []agent.PushRefusal{{
		Name: "x_total", Reason: "label_value_too_long", Message: refused[0].Message, Series: 2,
	}}, refused)
	require.Regexp(t, `^2 series, the first: value of label l of 3276[9] bytes, at most 32768|of 32770 bytes`, refused[0].Message)
	requireServed(t, f, store, map[string]float64{"a": 1, long: 2})

	wrong := func(label string, m *dto.Metric) {
		m.Counter.Exemplar = &dto.Exemplar{Value: proto.Float64(1), Label: []*dto.LabelPair{{Name: proto.String("-"), Value: proto.String("v")}}}
		m.Counter.CreatedTimestamp = &timestamppb.Timestamp{Seconds: -5, Nanos: 1}
	}
	refused = push(t, f, start, 1, 2, false, counterOf(map[string]float64{"a": 2, "b": 3}, wrong))
	require.Len(t, refused, 2)
	require.Equal(t, []string{"invalid_exemplar", "invalid_time"}, []string{refused[0].Reason, refused[1].Reason})
	require.Regexp(t, `^left out 2 times, the first: \{l="[ab]"\}: label name "-" of an exemplar$`, refused[0].Message)
	requireServed(t, f, store, map[string]float64{"a": 2, "b": 3, long: 2})
	require.Equal(t, 2.0, testutil.ToFloat64(f.metrics.refusedValues.WithLabelValues("invalid_exemplar")))

	h := parseText(t, "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n")[0]
	h.Metric[0].Histogram.Bucket[0].Exemplar = &dto.Exemplar{Value: proto.Float64(1), Label: []*dto.LabelPair{{Name: proto.String("-"), Value: proto.String("v")}}}
	refused = push(t, f, start, 1, 3, false, h)
	require.Equal(t, "invalid_exemplar", refused[0].Reason)
	require.Equal(t, 1.0, check(t, f)[`{__name__="h_count"}`])
}

// However much of a snapshot is refused, what is returned is bounded.
func TestRefusalsAreBounded(t *testing.T) {
	f := open(t, new(memory), Options{MaxFamilies: 100})
	var families []*dto.MetricFamily
	for n := range 150 {
		values := make(map[string]float64)
		for i := range 20 {
			values[fmt.Sprint(i)] = -1
		}
		fam := counterOf(values, nil)
		fam.Name = proto.String(fmt.Sprintf("x%d_total", n))
		families = append(families, fam)
	}
	refused := push(t, f, start, 1, 1, false, families...)
	require.Len(t, refused, 150)
	messages := 0
	for _, r := range refused {
		require.NotEmpty(t, r.Reason)
		if r.Message != "" {
			messages++
		}
	}
	require.Equal(t, family.MaxMessages, messages)
	require.Equal(t, 2000.0, testutil.ToFloat64(f.metrics.refusedSeries.WithLabelValues("invalid_counter")))
}

// Each family beyond the limit is refused by name and counted. So is one with a counter
// that is not served for that. Of very many only the number is returned.
func TestFamiliesBeyondTheLimit(t *testing.T) {
	f := open(t, new(memory), Options{MaxFamilies: 2})
	family := func(n int) *dto.MetricFamily {
		fam := counterOf(map[string]float64{"a": 1}, nil)
		fam.Name = proto.String(fmt.Sprintf("x%d_total", n))
		return fam
	}
	push(t, f, start, 1, 1, false, family(3))
	require.Contains(t, text(t, f), "x3_total")
	refused := push(t, f, start, 1, 2, false, family(0), family(1), family(2), family(3))
	require.Equal(t, []agent.PushRefusal{
		{Name: "x2_total", Reason: "too_many_families", Message: "4 families, the first 2 are stored (--max-pushed-families)"},
		{Name: "x3_total", Reason: "too_many_families", Message: "4 families, the first 2 are stored (--max-pushed-families)"},
	}, refused)
	require.NotContains(t, text(t, f), "x3_total")
	count := func() float64 { return testutil.ToFloat64(f.metrics.refused.WithLabelValues("too_many_families")) }
	require.Equal(t, 2.0, count())

	var many []*dto.MetricFamily
	for n := range 10 {
		many = append(many, family(n%8)) // names that come twice are beyond it too
	}
	refused = push(t, f, start, 1, 3, false, many...)
	require.Equal(t, 10.0, count())
	require.Len(t, refused, 3)
	require.Equal(t, []string{"x2_total", "x3_total", "x4_total"}, []string{refused[0].Name, refused[1].Name, refused[2].Name})
	require.Equal(t, "10 families, the first 2 are stored (--max-pushed-families); 5 after this one are refused too", refused[2].Message)
	refused = push(t, f, start, 1, 4, false, many[:5]...)
	require.Len(t, refused, 3)
	require.Equal(t, "5 families, the first 2 are stored (--max-pushed-families)", refused[2].Message)
	require.Equal(t, 13.0, count())
}

// A sum that is no number is left out of all sums at once. It stays so over restarts
// of coderd and of this service, and when its instance is folded.
func TestSumsStayNumbers(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e300} {
		store := new(memory)
		f := open(t, store, Options{})
		families := func(count uint64, sum float64) []*dto.MetricFamily {
			h := parseText(t, "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n")[0]
			h.Metric[0].Histogram.SampleCount, h.Metric[0].Histogram.SampleSum = &count, &sum
			h.Metric[0].Histogram.Bucket[0].CumulativeCount = proto.Uint64(min(count, 1))
			h.Metric[0].Histogram.Bucket[1].CumulativeCount = &count
			s := parseText(t, "# TYPE s summary\ns_sum 1\ns_count 1\n")[0]
			s.Metric[0].Summary.SampleCount, s.Metric[0].Summary.SampleSum = &count, &sum
			return []*dto.MetricFamily{h, s}
		}
		served := func(count, sum float64) {
			t.Helper()
			for _, f := range []*Families{f, open(t, store, Options{})} {
				got := check(t, f)
				for _, name := range []string{"h", "s"} {
					require.Equal(t, count, got[`{__name__="`+name+`_count"}`], "%v", bad)
					require.Equal(t, sum, got[`{__name__="`+name+`_sum"}`], "%v", bad)
				}
			}
		}
		require.Empty(t, push(t, f, start, 1, 1, false, families(10, 5)...))
		refused := push(t, f, start, 1, 2, false, families(11, bad)...)
		require.Len(t, refused, 2)
		require.Equal(t, []string{"invalid_sum", "invalid_sum"}, []string{refused[0].Reason, refused[1].Reason})
		require.Contains(t, refused[0].Message, "left out 1 times, the first: sum of ")
		served(11, 5)
		push(t, f, start, 1, 3, true, families(12, bad)...)
		served(12, 5)
		require.Empty(t, push(t, f, start, 2, 1, false, families(4, 2)...))
		served(16, 7)
		require.Empty(t, push(t, f, start, 2, 2, false, families(8, 4)...))
		served(20, 9)
		// From the beginning, and after a reset.
		push(t, f, start, 3, 1, false, families(1, bad)...)
		require.Empty(t, push(t, f, start, 3, 2, false, families(0, 0)...))
		push(t, f, start, 3, 3, true, families(1, bad)...)
		served(22, 9)
		f.expire(start.Add(25 * time.Hour))
		require.NoError(t, f.foldIdle(t.Context(), start.Add(25*time.Hour)))
		require.Len(t, store.rows, 4)
		served(22, 9)
	}
}

// A gauge that is no number does not touch those of others, and is served where
// it is alone.
func TestGaugesBesideNaN(t *testing.T) {
	for _, bad := range []string{"NaN", "+Inf", "-Inf", "1e300"} {
		f := open(t, new(memory), Options{})
		gauges := func(v string) string {
			return "# TYPE coderd_api_concurrent_requests gauge\ncoderd_api_concurrent_requests " + v +
				"\n# TYPE coder_pubsub_connected gauge\ncoder_pubsub_connected " + v + "\n# TYPE coderd_build_info gauge\ncoderd_build_info " + v + "\n"
		}
		pushText(t, f, start, 1, 1, gauges(bad))
		require.Contains(t, text(t, f), "coder_pubsub_connected "+strings.ReplaceAll(bad, "1e300", "1e+300")+"\n")
		pushText(t, f, start.Add(1), 2, 1, gauges("3"))
		pushText(t, f, start.Add(2), 3, 1, gauges("4"))
		got := check(t, f)
		require.Equal(t, 7.0, got[`{__name__="coderd_api_concurrent_requests"}`], bad)
		require.Equal(t, 3.0, got[`{__name__="coder_pubsub_connected"}`], bad)
		require.Equal(t, 4.0, got[`{__name__="coderd_build_info"}`], bad)
		// Counted with the snapshot that has them, of each that merges so, and not
		// when others push or leave, or when rows are read.
		invalid := func(f *Families) float64 {
			return testutil.ToFloat64(f.metrics.refusedValues.WithLabelValues("invalid_term"))
		}
		require.Equal(t, 3.0, invalid(f), bad)
		for n := range int64(20) {
			pushText(t, f, start.Add(2), 2, 2+n, gauges("3"))
		}
		pushText(t, f, start, 1, 1, gauges(bad)) // the same snapshot again
		f.expire(start.Add(time.Hour))
		require.Equal(t, 3.0, invalid(f), bad)
		require.Empty(t, pushText(t, f, start, 1, 2, gauges(bad)), "it is served where it is alone")
		require.Equal(t, 6.0, invalid(f), bad)
		require.Zero(t, invalid(open(t, f.store, Options{})))
	}
}

// A sum of gauges may be beyond what a term is.
func TestSumOfGaugesBeyondTerms(t *testing.T) {
	f := open(t, new(memory), Options{})
	const gauge = "# TYPE coderd_api_concurrent_requests gauge\ncoderd_api_concurrent_requests "
	for i, v := range []string{"18446744073709551615", "18446744073709551615", "5"} {
		pushText(t, f, start.Add(time.Duration(i)), byte(1+i), 1, gauge+v+"\n")
	}
	require.Equal(t, float64(2<<64)+5, check(t, f)[`{__name__="coderd_api_concurrent_requests"}`])
}

// A newer created timestamp means that a counter, histogram or summary began anew, even
// if it is not less than before. That holds over restarts of this service, too.
func TestCreatedTimestamps(t *testing.T) {
	const t1, t2 = 100e9, 200e9
	store := new(memory)
	f := open(t, store, Options{})
	families := func(scale float64, created int64) []*dto.MetricFamily {
		n := uint64(scale)
		counter := parseText(t, "# TYPE x_total counter\nx_total 1\n")[0]
		counter.Metric[0].Counter.Value, counter.Metric[0].Counter.CreatedTimestamp = &scale, createdAt(created)
		classic := parseText(t, "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n")[0]
		h := classic.Metric[0].Histogram
		h.SampleCount, h.SampleSum, h.CreatedTimestamp = &n, &scale, createdAt(created)
		h.Bucket[0].CumulativeCount, h.Bucket[1].CumulativeCount = &n, &n
		native := &dto.MetricFamily{Name: proto.String("n"), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{{Histogram: &dto.Histogram{
			SampleCount: &n, SampleSum: &scale, Schema: proto.Int32(0), ZeroThreshold: proto.Float64(0.001), CreatedTimestamp: createdAt(created),
			PositiveSpan: []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(1)}}, PositiveDelta: []int64{int64(n)},
		}}}}
		summary := parseText(t, "# TYPE s summary\ns_sum 1\ns_count 1\n")[0]
		s := summary.Metric[0].Summary
		s.SampleCount, s.SampleSum, s.CreatedTimestamp = &n, &scale, createdAt(created)
		return []*dto.MetricFamily{counter, classic, native, summary}
	}
	now := start
	served := func(want float64) {
		t.Helper()
		for _, f := range []*Families{f, open(t, store, Options{})} {
			got := check(t, f)
			for _, name := range []string{"x_total", "h_count", "h_sum", "n_count", "n_sum", "s_count", "s_sum"} {
				require.Equal(t, want, got[`{__name__="`+name+`"}`], name)
			}
		}
		f = open(t, store, Options{})
	}
	for i, step := range []struct {
		value   float64
		created int64
		want    float64
	}{
		{10, t1, 10},
		{10, t1, 10},
		{10, t2, 20},     // the same
		{12, t2, 22},     // counts on
		{13, t1, 23},     // an older one says nothing
		{13, t2, 23},     // nor that it is back
		{13, 0, 23},      // nor does none
		{15, t2 + 1, 38}, // higher
		{3, t2 + 2, 41},  // lower
		{4, t2 + 2, 42},
	} {
		require.Empty(t, push(t, f, now, 1, int64(1+i), false, families(step.value, step.created)...))
		served(step.want)
	}
	f.expire(now.Add(25 * time.Hour))
	require.NoError(t, f.foldIdle(t.Context(), now.Add(25*time.Hour)))
	served(42)
	require.Empty(t, push(t, f, now, 1, 100, false, families(4, t2+2)...))
	served(42)
	f.expire(now.Add(25 * time.Hour))
	require.NoError(t, f.foldIdle(t.Context(), now.Add(25*time.Hour)))
	require.Empty(t, push(t, f, now, 1, 101, false, families(4, t2+3)...))
	served(46)
	require.Empty(t, push(t, f, now, 1, 102, false, families(5, t2+3)...))
	served(47)
}

// Rows that the first version wrote are read, and heal: what a NaN took away is
// not in them, the rest is.
func TestRowsOfTheFirstVersion(t *testing.T) {
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		return data
	}
	first := time.Unix(1_790_000_000, 0)
	for name, rows := range map[string]map[agent.Instance]agent.PushRow{
		"instance": {instanceID(1): {Instance: instanceID(1), UpdatedAt: first, Data: read("instance.row"), Version: 1}},
		"folded": {
			instanceID(1): {Instance: instanceID(1), UpdatedAt: first, Data: read("folded.row"), Version: 1},
			{}:            {UpdatedAt: first, Data: read("totals.row"), Version: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := &memory{rows: rows}
			f := open(t, store, Options{})
			want := map[string]float64{
				`{__name__="h_bucket", le="1.0"}`: 4, `{__name__="h_bucket", le="+Inf"}`: 5, `{__name__="h_count"}`: 5, `{__name__="h_sum"}`: 1,
				`{__name__="s_count"}`: 2, `{__name__="s_sum"}`: 5, `{__name__="x_total", l="a"}`: 7,
			}
			if name == "folded" { // the NaN was in the total only
				want[`{__name__="h_sum"}`] = 0
			}
			require.Equal(t, want, check(t, f))
			pushText(t, f, time.Now(), 1, 3, "# TYPE x_total counter\nx_total{l=\"a\"} 3\n")
			require.Equal(t, 8.0, check(t, f)[`{__name__="x_total", l="a"}`])
		})
	}
}

// A family whose series are all refused has no effect on others. It does not become the
// source of a sticky family, and sets no type of its name or of names beside it.
func TestFamilyWithoutSeriesTakesNothing(t *testing.T) {
	long := &dto.Metric{Label: []*dto.LabelPair{{Name: proto.String("l"), Value: proto.String(strings.Repeat("x", 32<<10+1))}}, Gauge: &dto.Gauge{Value: proto.Float64(1)}}
	sticky := &dto.MetricFamily{Name: proto.String("coderd_license_active_users"), Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{long}}
	nan := parseText(t, "# TYPE z counter\nz NaN\n")
	noSummary := &dto.MetricFamily{Name: proto.String("y"), Type: dto.MetricType_SUMMARY.Enum(), Metric: []*dto.Metric{{}}}
	empty := &dto.MetricFamily{Name: proto.String("w"), Type: dto.MetricType_COUNTER.Enum()}
	refusedAll := slices.Concat(nan, []*dto.MetricFamily{sticky, noSummary, empty})
	good := parseText(t, `# TYPE coderd_license_active_users gauge
coderd_license_active_users 7
# TYPE w gauge
w 7
# TYPE y_count gauge
y_count 7
# TYPE z gauge
z 7
`)
	const want = "coderd_license_active_users 7\nw 7\ny_count 7\nz 7\n"
	served := func(f *Families) {
		t.Helper()
		var lines strings.Builder
		for line := range strings.Lines(text(t, f)) {
			if !strings.HasPrefix(line, "#") {
				lines.WriteString(line)
			}
		}
		require.Equal(t, want, lines.String())
	}
	for _, goodFirst := range []bool{false, true} {
		store := new(memory)
		f := open(t, store, Options{})
		if goodFirst {
			require.Empty(t, push(t, f, start, 2, 1, false, good...))
			served(f)
		}
		reasons := make(map[string]string)
		for _, r := range push(t, f, start.Add(1), 1, 1, false, refusedAll...) {
			reasons[r.Name] = r.Reason
		}
		require.Equal(t, "label_value_too_long", reasons["coderd_license_active_users"])
		require.Empty(t, push(t, f, start.Add(2), 2, 2, false, good...))
		served(f)
		served(open(t, store, Options{}))
	}

	// Nor if its series are refused for want of room, nor in rows of before.
	store := new(memory)
	full := parseText(t, "# TYPE a gauge\na{l=\"1\"} 1\na{l=\"2\"} 1\n")
	f := open(t, store, Options{MaxSeries: 2})
	refused := push(t, f, start, 1, 1, false, append(full, good[0])...)
	require.Len(t, refused, 1)
	require.Equal(t, "too_many_series", refused[0].Reason)
	require.Empty(t, push(t, f, start.Add(1), 2, 1, false, good[0]))
	require.Contains(t, text(t, f), "coderd_license_active_users 7\n")

	const name = "coderd_license_active_users"
	row := rowOf(t, instanceID(1), family.Row{Snapshot: 1, Families: family.Set{name: {Name: name, Type: metrics.Gauge, Since: 1}}})
	store.spoil(instanceID(1), row.Data)
	require.Contains(t, text(t, open(t, store, Options{})), "coderd_license_active_users 7\n")
}
