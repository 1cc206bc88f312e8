package pushed

import (
	"math"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// source is a histogram of one process.
type source struct {
	id       agent.Instance
	snapshot int64
	reg      *prometheus.Registry
	h        prometheus.Histogram
}

func newSource(id byte, factor float64, buckets ...float64) *source {
	s := &source{id: instanceID(id), reg: prometheus.NewRegistry()}
	opts := prometheus.HistogramOpts{Name: "h", Buckets: buckets, NativeHistogramBucketFactor: factor}
	s.h = prometheus.NewHistogram(opts)
	s.reg.MustRegister(s.h)
	return s
}

func (s *source) push(t *testing.T, f *Families, values ...float64) {
	t.Helper()
	for _, v := range values {
		s.h.Observe(v)
	}
	in, err := s.reg.Gather()
	require.NoError(t, err)
	s.snapshot++
	refused, err := f.Push(t.Context(), start, agent.Push{Instance: s.id, Snapshot: s.snapshot, Families: serialize(t, in...)})
	require.NoError(t, err)
	require.Empty(t, refused)
	check(t, f)
}

// nativeServed returns the only native histogram as Prometheus gets it.
func nativeServed(t fataler, f *Families) *histogram.FloatHistogram {
	t.Helper()
	p := textparse.NewProtobufParser(protobuf(t, f), false, false, false, false, labels.NewSymbolTable())
	for {
		entry, err := p.Next()
		require.NoError(t, err)
		if entry == textparse.EntryHistogram {
			_, _, whole, float := p.Histogram()
			if whole != nil {
				float = whole.ToFloat(nil)
			}
			return float
		}
	}
}

// observed returns the native histogram of one process that saw all values.
func observed(t *testing.T, factor float64, values ...float64) *histogram.FloatHistogram {
	t.Helper()
	f := open(t, new(memory), Options{})
	newSource(1, factor).push(t, f, values...)
	return nativeServed(t, f)
}

// Two processes make what one process would that saw both's values, at the
// coarser resolution, for ever.
func TestNative(t *testing.T) {
	database := new(memory)
	f := open(t, database, Options{})
	fine, coarse := newSource(1, 1.1, 1, 5), newSource(2, 2, 1, 5)
	fine.push(t, f, 0.3, 1, 2.5, 0, -4)
	require.Equal(t, int32(3), nativeServed(t, f).Schema)
	coarse.push(t, f, 1, 100, -0.1, 1e-300)
	want := observed(t, 2, 0.3, 1, 2.5, 0, -4, 1, 100, -0.1, 1e-300)
	want.Sum = nativeServed(t, f).Sum // added up in another order
	require.Equal(t, int32(0), want.Schema)
	require.Equal(t, want.String(), nativeServed(t, f).String())
	require.Equal(t, map[string]float64{
		`{__name__="h_bucket", le="1.0"}`: 7, `{__name__="h_bucket", le="5.0"}`: 8, `{__name__="h_bucket", le="+Inf"}`: 9,
		`{__name__="h_count"}`: 9, `{__name__="h_sum"}`: 100.7,
	}, check(t, f))

	// The coarse one goes on as a fine one; the resolution stays.
	again := newSource(2, 1.1, 1, 5)
	again.snapshot = 1
	again.push(t, f, 0.3)
	require.Equal(t, int32(0), nativeServed(t, f).Schema)
	require.Equal(t, 10.0, nativeServed(t, f).Count)
	require.Equal(t, nativeServed(t, f), nativeServed(t, open(t, database, Options{})))
}

// An instance without native buckets counts in the bucket of its bounds, so
// that the counts add up.
func TestNativeAndClassic(t *testing.T) {
	f := open(t, new(memory), Options{})
	newSource(1, 0, -1, 0, 2).push(t, f, -3, -0.5, 1, 2, 3)
	newSource(2, 2).push(t, f, 1.5)
	got := nativeServed(t, f)
	require.Equal(t, 6.0, got.Count)
	buckets := map[float64]float64{}
	for it := got.AllBucketIterator(); it.Next(); {
		b := it.At()
		buckets[b.Upper] = b.Count
	}
	require.Equal(t, map[float64]float64{-0.5: 1, got.ZeroThreshold: 1, 2: 3, math.Inf(1): 1}, buckets)

	// Native only: text has the bucket of all.
	f = open(t, new(memory), Options{})
	newSource(1, 2).push(t, f, 1)
	require.Equal(t, "# HELP h \n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n", "# HELP h \n"+text(t, f))
}

// Bounds that differ are united; an instance counts at a bound that it lacks
// what it counts at the next lower one.
func TestBounds(t *testing.T) {
	f := open(t, new(memory), Options{})
	newSource(1, 0, 1, 5).push(t, f, 0.5, 4, 9)
	newSource(2, 0, 2, 5, 10).push(t, f, 1.5, 7, 20)
	want := map[string]float64{
		`{__name__="h_bucket", le="1.0"}`: 1, `{__name__="h_bucket", le="2.0"}`: 2, `{__name__="h_bucket", le="5.0"}`: 3,
		`{__name__="h_bucket", le="10.0"}`: 4, `{__name__="h_bucket", le="+Inf"}`: 6, `{__name__="h_count"}`: 6, `{__name__="h_sum"}`: 42,
	}
	require.Equal(t, want, check(t, f))
	changed := newSource(1, 0, 3)
	changed.snapshot = 1
	changed.push(t, f, 2.5)
	want[`{__name__="h_bucket", le="3.0"}`] = 3
	want[`{__name__="h_bucket", le="5.0"}`] = 4
	want[`{__name__="h_bucket", le="10.0"}`] = 5
	want[`{__name__="h_bucket", le="+Inf"}`] = 7
	want[`{__name__="h_count"}`] = 7
	want[`{__name__="h_sum"}`] = 44.5
	require.Equal(t, want, check(t, f))
}

// Histograms of any form, whole or not, are refused or served, and never fall.
func TestAnyHistogram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := open(t, new(memory), Options{})
		var before *histogram.FloatHistogram
		for n := range rapid.IntRange(1, 6).Draw(t, "pushes") {
			family := &dto.MetricFamily{Name: proto.String("h"), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{{Histogram: anyHistogram(t)}}}
			id := byte(rapid.IntRange(1, 2).Draw(t, "instance"))
			refused, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(id), Snapshot: int64(1 + n), Families: serialize(t, family)})
			require.NoError(t, err)
			check(t, f)
			m := families(t, f)["h"]
			if m == nil && len(refused) > 0 {
				continue // not served while nobody pushes it right
			}
			if m == nil || m.Metric[0].Histogram.Schema == nil {
				require.Nil(t, before)
				continue
			}
			native := nativeServed(t, f)
			if before != nil {
				require.False(t, native.DetectReset(before), "%v after %v", native, before)
			}
			before = native
		}
	})
}

func anyHistogram(t *rapid.T) *dto.Histogram {
	h := &dto.Histogram{
		Schema:        proto.Int32(rapid.Int32Range(-4, 8).Draw(t, "schema")),
		ZeroThreshold: proto.Float64(rapid.SampledFrom([]float64{0, 1e-30, 0.3, 1, 7}).Draw(t, "threshold")),
		SampleSum:     proto.Float64(rapid.SampledFrom([]float64{0, 1.5, math.NaN(), math.Inf(1)}).Draw(t, "sum")),
	}
	float := rapid.Bool().Draw(t, "float")
	total := 0.0
	count := func() float64 {
		c := float64(rapid.IntRange(0, 4).Draw(t, "count"))
		if float {
			c += rapid.SampledFrom([]float64{0, 0.1, 0.5}).Draw(t, "fraction")
		}
		total += c
		return c
	}
	side := func() (spans []*dto.BucketSpan, deltas []int64, counts []float64) {
		before := int64(0)
		for i := range rapid.IntRange(0, 3).Draw(t, "spans") {
			offset := rapid.Int32Range(0, 3).Draw(t, "offset")
			if i == 0 {
				offset = rapid.Int32Range(-40, 40).Draw(t, "first")
			}
			length := rapid.Uint32Range(0, 4).Draw(t, "length")
			spans = append(spans, &dto.BucketSpan{Offset: &offset, Length: &length})
			for range length {
				c := count()
				counts, deltas = append(counts, c), append(deltas, int64(c)-before)
				before = int64(c)
			}
		}
		if float {
			return spans, nil, counts
		}
		return spans, deltas, nil
	}
	h.PositiveSpan, h.PositiveDelta, h.PositiveCount = side()
	h.NegativeSpan, h.NegativeDelta, h.NegativeCount = side()
	zero := count()
	if rapid.IntRange(0, 9).Draw(t, "wrong") == 0 {
		total++
	}
	for i, bound := range []float64{-1, 0.5, 3} {
		if rapid.Bool().Draw(t, "bucket") {
			h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: proto.Float64(bound), CumulativeCount: proto.Uint64(uint64(total) * uint64(i) / 3)})
		}
	}
	if float {
		h.SampleCountFloat, h.ZeroCountFloat = &total, &zero
	} else {
		h.SampleCount, h.ZeroCount = proto.Uint64(uint64(total)), proto.Uint64(uint64(zero))
	}
	return h
}

// The zero bucket never gets narrower, even if the bucket for which it was
// widened is lost in the wider one of its instance.
func TestZeroBucket(t *testing.T) {
	f := open(t, new(memory), Options{})
	last := 0.0
	for n, step := range []struct {
		id byte
		in string
	}{
		{2, `sample_count: 1 schema: 0 positive_span { offset: 1 length: 1 } positive_delta: 1`},
		{2, `sample_count: 0 schema: 0 zero_threshold: 7`},
		{1, `sample_count: 0 schema: -4 positive_span { offset: 0 length: 0 }`},
		{2, `sample_count: 0`},
	} {
		var family dto.MetricFamily
		require.NoError(t, prototext.Unmarshal([]byte(`name: "h" type: HISTOGRAM metric { histogram { `+step.in+` } }`), &family))
		refused, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(step.id), Snapshot: int64(1 + n), Families: serialize(t, &family)})
		require.NoError(t, err)
		require.Empty(t, refused)
		got := nativeServed(t, f)
		require.GreaterOrEqual(t, got.ZeroThreshold, last)
		last = got.ZeroThreshold
	}
	require.Equal(t, 65536.0, last)
}

// A process that takes its fine bucket into its zero bucket does not cut the
// coarse bucket of the sum.
func TestZeroBucketWithinCoarseBucket(t *testing.T) {
	f := open(t, new(memory), Options{})
	var before *histogram.FloatHistogram
	for n, step := range []struct {
		id byte
		in string
	}{
		{2, `sample_count: 1 schema: 0 positive_span { offset: 1 length: 1 } positive_delta: 1`},
		{1, `sample_count: 0 schema: -2 positive_span { offset: 0 length: 0 }`},
		{2, `sample_count: 1 schema: 0 zero_threshold: 7 zero_count: 1`},
		{2, `sample_count: 3 schema: 0 zero_threshold: 7 zero_count: 1 positive_span { offset: 4 length: 2 } positive_delta: 1 positive_delta: 0`},
	} {
		var family dto.MetricFamily
		require.NoError(t, prototext.Unmarshal([]byte(`name: "h" type: HISTOGRAM metric { histogram { `+step.in+` } }`), &family))
		refused, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(step.id), Snapshot: int64(1 + n), Families: serialize(t, &family)})
		require.NoError(t, err)
		require.Empty(t, refused)
		got := nativeServed(t, f)
		require.False(t, before != nil && got.DetectReset(before), "%v after %v", got, before)
		before = got
	}
	require.Equal(t, "{count:3, sum:0, [-16,16]:2, (16,256]:1}", before.String())
}

// How wide zero buckets have been is forgotten with the series that are, for want
// of room.
func TestFloorsAreForgotten(t *testing.T) {
	f := open(t, new(memory), Options{MaxTotalSeries: 100})
	for n := range 100 {
		all := nativeFamily("n", 1)
		all.Metric = nil
		for i := range 10 {
			label := &dto.LabelPair{Name: proto.String("l"), Value: proto.String(strconv.Itoa(10*n + i))}
			all.Metric = append(all.Metric, nativeFamily("n", 1, label).Metric...)
		}
		refused, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(1), Snapshot: int64(1 + n), Families: serialize(t, all)})
		require.NoError(t, err)
		require.Empty(t, refused)
		require.Len(t, f.floors["n"], len(families(t, f)["n"].Metric))
	}
	require.Less(t, len(f.floors["n"]), 100)
}

// nativeFamily has a native histogram that counts n in one bucket.
func nativeFamily(name string, n uint64, labels ...*dto.LabelPair) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{{
		Label: labels,
		Histogram: &dto.Histogram{
			SampleCount: &n, SampleSum: proto.Float64(float64(n)), Schema: proto.Int32(0), ZeroThreshold: proto.Float64(0.001),
			PositiveSpan: []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(1)}}, PositiveDelta: []int64{int64(n)},
		},
	}}}
}
