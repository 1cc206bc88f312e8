package family

import (
	"math"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/metrics"
)

// Render writes a merged family, which has series, in both formats. It returns an
// error only if the family is not one that was decoded or merged here.
func Render(f *Family) (*metrics.Rendered, error) {
	return metrics.Render(f.message(), f.Type)
}

func (f *Family) message() *dto.MetricFamily {
	out := &dto.MetricFamily{Name: &f.Name, Metric: make([]*dto.Metric, len(f.Series))}
	if f.Help != "" {
		out.Help = &f.Help
	}
	for i := range f.Series {
		s := &f.Series[i]
		m := &dto.Metric{Label: labelPairs(s.Labels)}
		value := s.Value
		if len(s.Base) > 0 {
			value = s.Base.plus(value).value()
		}
		switch f.Type {
		case metrics.Counter:
			out.Type = dto.MetricType_COUNTER.Enum()
			m.Counter = &dto.Counter{Value: &value, CreatedTimestamp: timestamp(s.Created)}
			if s.Exemplar != nil {
				m.Counter.Exemplar = s.Exemplar.message()
			}
		case metrics.Gauge:
			out.Type = dto.MetricType_GAUGE.Enum()
			m.Gauge = &dto.Gauge{Value: &value}
		case metrics.Summary:
			out.Type = dto.MetricType_SUMMARY.Enum()
			m.Summary = &dto.Summary{
				SampleCount:      proto.Uint64(uint64(s.merged().Count)),
				SampleSum:        proto.Float64(s.merged().Sum.value()),
				CreatedTimestamp: timestamp(s.Created),
			}
			for i := range s.Quantiles {
				q := &s.Quantiles[i]
				m.Summary.Quantile = append(m.Summary.Quantile, &dto.Quantile{Quantile: &q.Rank, Value: &q.Value})
			}
		case metrics.Histogram:
			out.Type = dto.MetricType_HISTOGRAM.Enum()
			m.Histogram = s.merged().message()
			m.Histogram.CreatedTimestamp = timestamp(s.Created)
		default:
			out.Type = dto.MetricType_UNTYPED.Enum()
			m.Untyped = &dto.Untyped{Value: &value}
		}
		out.Metric[i] = m
	}
	return out
}

// merged is the distribution of a merged series: a sum, or one of the whole.
func (s *Series) merged() *Distribution {
	if s.Hist != nil {
		return s.Hist
	}
	return s.BaseHist
}

func labelPairs(labels string) []*dto.LabelPair {
	var out []*dto.LabelPair
	for name, value := range eachLabel(labels) {
		out = append(out, &dto.LabelPair{Name: &name, Value: &value})
	}
	return out
}

// timestamp returns a time in nanoseconds since 1970; 0: none.
func timestamp(ns int64) *timestamppb.Timestamp {
	if ns == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(0, ns))
}

func (e *Exemplar) message() *dto.Exemplar {
	return &dto.Exemplar{Label: labelPairs(e.Labels), Value: &e.Value, Timestamp: timestamp(e.Time)}
}

// message returns d as a histogram. Its counts are whole numbers unless one of
// them is not, or is so large that Prometheus could find that they do not add
// up.
func (d *Distribution) message() *dto.Histogram {
	out := &dto.Histogram{SampleSum: proto.Float64(d.Sum.value())}
	whole := d.whole()
	count := func(v float64) (n *uint64, f *float64) {
		if whole {
			return proto.Uint64(uint64(v)), nil
		}
		return nil, &v
	}
	out.SampleCount, out.SampleCountFloat = count(d.Count)
	exemplars := d.Exemplars
	bucket := func(bound, cumulative float64) {
		b := &dto.Bucket{UpperBound: &bound}
		b.CumulativeCount, b.CumulativeCountFloat = count(cumulative)
		if len(exemplars) > 0 && exemplars[0].Bound == bound {
			b.Exemplar = exemplars[0].Exemplar.message()
			exemplars = exemplars[1:]
		}
		out.Bucket = append(out.Bucket, b)
	}
	for i, bound := range d.Bounds {
		bucket(bound, d.Counts[i])
	}
	if len(out.Bucket) > 0 || len(exemplars) > 0 || d.Native == nil {
		bucket(math.Inf(1), d.Count)
	}
	if d.Native == nil {
		return out
	}
	n := d.Native
	out.Schema, out.ZeroThreshold = &n.Schema, &n.ZeroThreshold
	out.ZeroCount, out.ZeroCountFloat = count(n.ZeroCount)
	out.PositiveSpan, out.NegativeSpan = spanMessages(n.PositiveSpans), spanMessages(n.NegativeSpans)
	if len(out.PositiveSpan) == 0 && len(out.NegativeSpan) == 0 {
		// With it an empty native histogram differs from one without native buckets.
		out.PositiveSpan = []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(0)}}
	}
	if whole {
		out.PositiveDelta, out.NegativeDelta = deltas(n.PositiveBuckets), deltas(n.NegativeBuckets)
	} else {
		out.PositiveCount, out.NegativeCount = n.PositiveBuckets, n.NegativeBuckets
	}
	for i := range d.NativeExemplars {
		out.Exemplars = append(out.Exemplars, d.NativeExemplars[i].message())
	}
	return out
}

// whole reports whether all counts are exact whole numbers, and those of native buckets
// add up. Observations of NaN are in no bucket.
func (d *Distribution) whole() bool {
	isWhole := func(v float64) bool { return v == math.Trunc(v) && v <= maxCount }
	ok := isWhole(d.Count)
	for _, c := range d.Counts {
		ok = ok && isWhole(c)
	}
	if d.Native == nil {
		return ok
	}
	total := d.Native.ZeroCount
	ok = ok && isWhole(total)
	for _, list := range [][]float64{d.Native.PositiveBuckets, d.Native.NegativeBuckets} {
		for _, c := range list {
			ok = ok && isWhole(c)
			total += c
		}
	}
	return ok && (total == d.Count || math.IsNaN(d.Sum.value()) && total < d.Count)
}

func spanMessages(spans []histogram.Span) []*dto.BucketSpan {
	out := make([]*dto.BucketSpan, len(spans))
	for i, s := range spans {
		out[i] = &dto.BucketSpan{Offset: proto.Int32(s.Offset), Length: proto.Uint32(s.Length)}
	}
	return out
}

func deltas(counts []float64) []int64 {
	out := make([]int64, len(counts))
	before := int64(0)
	for i, c := range counts {
		out[i] = int64(c) - before
		before = int64(c)
	}
	return out
}
