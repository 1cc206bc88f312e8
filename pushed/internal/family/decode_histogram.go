package family

import (
	"cmp"
	"math"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
)

const (
	// maxBuckets of one series, classic or native, as pushed.
	maxBuckets = 4096
	// maxNativeIndex bounds the indices of native buckets: at the finest
	// resolution all numbers are within 1100 * 2^8 = 281,600.
	maxNativeIndex = 1 << 19
)

// maxQuantiles of one series: client_golang's users have a handful.
const maxQuantiles = 64

// decodeSummary returns count and sum, and the quantiles sorted.
func decodeSummary(in *dto.Summary) (*Distribution, []Quantile, *Refusal) {
	count := float64(in.GetSampleCount())
	if count > maxCount {
		return nil, nil, refuse(reasonInvalidSummary, "count %v, at most 2^53", count)
	}
	if n := len(in.GetQuantile()); n > maxQuantiles {
		return nil, nil, refuse(reasonInvalidSummary, "%d quantiles, at most %d", n, maxQuantiles)
	}
	var quantiles []Quantile
	for _, q := range in.GetQuantile() {
		rank := canonical(q.GetQuantile())
		if !(rank >= 0 && rank <= 1) {
			return nil, nil, refuse(reasonInvalidSummary, "quantile %v is not within 0 and 1", rank)
		}
		quantiles = append(quantiles, Quantile{rank, canonical(q.GetValue())})
	}
	slices.SortFunc(quantiles, func(a, b Quantile) int { return cmp.Compare(a.Rank, b.Rank) })
	for i := range quantiles {
		if i > 0 && quantiles[i].Rank == quantiles[i-1].Rank {
			return nil, nil, refuse(reasonInvalidSummary, "quantile %v twice", quantiles[i].Rank)
		}
	}
	return &Distribution{Count: count, Sum: ExactSum{canonical(in.GetSampleSum())}}, quantiles, nil
}

func decodeHistogram(in *dto.Histogram, labels string, values *Refusals) (*Distribution, *Refusal) {
	d := &Distribution{Sum: ExactSum{canonical(in.GetSampleSum())}}
	var ok bool
	if d.Count, ok = decodeCount(in.GetSampleCountFloat(), in.GetSampleCount()); !ok {
		return nil, refuse(reasonInvalidHistogram, "sample count is not within 0 and 2^53")
	}
	if r := d.decodeClassic(in.GetBucket(), labels, values); r != nil {
		return nil, r
	}
	if !isNative(in) {
		return d, nil
	}
	if r := d.decodeNative(in); r != nil {
		return nil, r
	}
	for _, e := range in.GetExemplars() {
		if e.GetTimestamp() == nil {
			continue // Prometheus drops it
		}
		if decoded := decodeExemplar(e, labels, values); decoded != nil {
			d.NativeExemplars = append(d.NativeExemplars, *decoded)
		}
	}
	slices.SortFunc(d.NativeExemplars, compareExemplars)
	d.NativeExemplars = d.NativeExemplars[max(0, len(d.NativeExemplars)-maxNativeExemplars):]
	return d, nil
}

// decodeCount returns a count that is a float if it is above 0. Fractions are
// cut to the quantum. It is false if the count is out of range.
func decodeCount(f float64, n uint64) (float64, bool) {
	if f == 0 {
		f = float64(n)
	}
	if !(f >= 0 && f <= maxCount) {
		return 0, false
	}
	return quantize(f), true
}

func quantize(f float64) float64 {
	if f == math.Trunc(f) {
		return f
	}
	return math.Floor(f/countQuantum) * countQuantum
}

func (d *Distribution) decodeClassic(buckets []*dto.Bucket, labels string, values *Refusals) *Refusal {
	if len(buckets) > maxBuckets {
		return refuse(reasonInvalidHistogram, "%d buckets, at most %d", len(buckets), maxBuckets)
	}
	last, before := math.Inf(-1), 0.0
	for i, b := range buckets {
		bound := canonical(b.GetUpperBound())
		count, ok := decodeCount(b.GetCumulativeCountFloat(), b.GetCumulativeCount())
		switch {
		case math.IsNaN(bound), math.IsInf(bound, -1):
			return refuse(reasonInvalidHistogram, "bucket with the bound %v", bound)
		case i > 0 && bound <= last:
			return refuse(reasonInvalidHistogram, "bucket bound %v after %v: bounds must rise", bound, last)
		case !ok || count < before || count > d.Count:
			return refuse(reasonInvalidHistogram, "bucket le=%v counts %v: cumulative counts must not fall and not exceed the sample count %v",
				bound, count, d.Count)
		case math.IsInf(bound, 1) && count != d.Count:
			return refuse(reasonInvalidHistogram, "bucket le=+Inf counts %v of %v", count, d.Count)
		}
		if e := b.GetExemplar(); e != nil {
			if decoded := decodeExemplar(e, labels, values); decoded != nil {
				d.Exemplars = append(d.Exemplars, BucketExemplar{bound, *decoded})
			}
		}
		if !math.IsInf(bound, 1) {
			d.Bounds, d.Counts = append(d.Bounds, bound), append(d.Counts, count)
		}
		last, before = bound, count
	}
	return nil
}

// isNative reports whether in has native buckets, as Prometheus does.
func isNative(in *dto.Histogram) bool {
	return len(in.GetPositiveSpan()) > 0 || len(in.GetNegativeSpan()) > 0 ||
		in.GetZeroThreshold() > 0 || in.GetZeroCount() > 0 || in.GetZeroCountFloat() > 0
}

// isFloat reports whether the native buckets of in are counted in floats, as
// Prometheus does.
func isFloat(in *dto.Histogram) bool {
	return in.GetSampleCountFloat() > 0 || in.GetZeroCountFloat() > 0 ||
		len(in.GetPositiveCount()) > 0 || len(in.GetNegativeCount()) > 0
}

func (d *Distribution) decodeNative(in *dto.Histogram) *Refusal {
	buckets := max(len(in.GetPositiveDelta()), len(in.GetPositiveCount())) +
		max(len(in.GetNegativeDelta()), len(in.GetNegativeCount()))
	switch threshold := in.GetZeroThreshold(); {
	case !histogram.IsExponentialSchema(in.GetSchema()):
		return refuse(reasonInvalidNative, "schema %d is not within %d and %d",
			in.GetSchema(), histogram.ExponentialSchemaMin, histogram.ExponentialSchemaMax)
	case !(threshold >= 0) || math.IsInf(threshold, 1):
		return refuse(reasonInvalidNative, "zero threshold %v", threshold)
	case buckets > maxBuckets:
		return refuse(reasonInvalidNative, "%d native buckets, at most %d", buckets, maxBuckets)
	}
	positive, r := decodeSpans(in.GetPositiveSpan())
	if r != nil {
		return r
	}
	negative, r := decodeSpans(in.GetNegativeSpan())
	if r != nil {
		return r
	}
	if isFloat(in) {
		d.Native = &histogram.FloatHistogram{
			Schema: in.GetSchema(), ZeroThreshold: in.GetZeroThreshold(),
			ZeroCount: in.GetZeroCountFloat(), Count: d.Count,
			PositiveSpans: positive, PositiveBuckets: in.GetPositiveCount(),
			NegativeSpans: negative, NegativeBuckets: in.GetNegativeCount(),
		}
		if err := d.Native.Validate(); err != nil {
			return refuse(reasonInvalidNative, "%v", err)
		}
	} else {
		whole := histogram.Histogram{
			Schema: in.GetSchema(), ZeroThreshold: in.GetZeroThreshold(),
			ZeroCount: in.GetZeroCount(), Count: in.GetSampleCount(), Sum: d.Sum.value(),
			PositiveSpans: positive, PositiveBuckets: in.GetPositiveDelta(),
			NegativeSpans: negative, NegativeBuckets: in.GetNegativeDelta(),
		}
		if err := whole.Validate(); err != nil {
			return refuse(reasonInvalidNative, "%v", err)
		}
		d.Native = whole.ToFloat(nil)
		d.Native.Sum = 0
	}
	total, ok := d.Native.ZeroCount, true
	for _, list := range [][]float64{d.Native.PositiveBuckets, d.Native.NegativeBuckets} {
		for i, count := range list {
			ok = ok && count >= 0 && count <= maxCount
			list[i] = quantize(count)
			total += list[i]
		}
	}
	d.Native.ZeroCount = quantize(d.Native.ZeroCount)
	// A float histogram's count may be short of its buckets by rounding.
	if !ok || !(total <= maxCount) || total > d.Count*(1+1e-9)+countQuantum {
		return refuse(reasonInvalidNative, "native buckets count %v of %v", total, d.Count)
	}
	d.Native.Compact(0)
	for _, it := range []histogram.BucketIterator[float64]{d.Native.PositiveBucketIterator(), d.Native.NegativeBucketIterator()} {
		for it.Next() {
			b := it.At()
			if max(math.Abs(b.Lower), math.Abs(b.Upper)) <= d.Native.ZeroThreshold && b.Count > 0 {
				// The library would not add it.
				return refuse(reasonInvalidNative, "the bucket %v lies within the zero bucket, of %v", b, d.Native.ZeroThreshold)
			}
		}
	}
	return nil
}

// decodeSpans bounds what the library does arithmetic with.
func decodeSpans(in []*dto.BucketSpan) ([]histogram.Span, *Refusal) {
	if len(in) > maxBuckets {
		return nil, refuse(reasonInvalidNative, "%d spans of native buckets, at most %d", len(in), maxBuckets)
	}
	spans := make([]histogram.Span, len(in))
	index := int64(0)
	for i, s := range in {
		first := index + int64(s.GetOffset())
		index = first + int64(s.GetLength())
		if first < -maxNativeIndex || index > maxNativeIndex {
			return nil, refuse(reasonInvalidNative, "native buckets %d to %d: indices are within ±%d", first, index, maxNativeIndex)
		}
		spans[i] = histogram.Span{Offset: s.GetOffset(), Length: s.GetLength()}
	}
	return spans, nil
}
