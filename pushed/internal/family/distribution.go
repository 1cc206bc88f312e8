package family

import (
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
)

// Distribution is the value of a histogram, or the count and sum of a summary.
// Counts are multiples of countQuantum, so that their sums are exact in any
// order up to 2^37, those of whole numbers up to 2^53.
type Distribution struct {
	Count float64
	Sum   ExactSum
	// Bounds of the classic buckets in increasing order, +Inf left out, and the
	// cumulative count of each.
	Bounds, Counts []float64
	// Exemplars of the classic buckets, by bound; +Inf is one.
	Exemplars []BucketExemplar
	// Native are the native buckets; nil: there are none. Its Count is Count,
	// its Sum is not used.
	Native *histogram.FloatHistogram
	// NativeExemplars are in the order of their times.
	NativeExemplars []Exemplar
}

// BucketExemplar is the exemplar of the bucket up to Bound.
type BucketExemplar struct {
	Bound float64
	// Exemplar is not embedded: gob leaves out embedded structs of unexported types.
	Exemplar Exemplar
}

// Exemplar is one of the observations that were counted.
type Exemplar struct {
	// Labels as those of a series.
	Labels string
	Value  float64
	// Time in nanoseconds since 1970; 0: unknown.
	Time int64
}

const (
	// countQuantum is what fractional counts are cut to multiples of.
	countQuantum = 1.0 / (1 << 16)
	// maxCount is the largest count up to which whole numbers are exact.
	maxCount = 1 << 53
	// maxNativeExemplars of one series, as many as client_golang keeps.
	maxNativeExemplars = 10
	// maxSchema is the finest resolution of native buckets.
	maxSchema = histogram.ExponentialSchemaMax
)

// lines is what d counts as against limits on series.
func (d *Distribution) lines() int {
	if d == nil {
		return 0
	}
	n := 2 + len(d.Bounds)
	if d.Native != nil {
		n += len(d.Native.PositiveBuckets) + len(d.Native.NegativeBuckets)
	}
	return n
}

// resetSince reports whether d was counted from 0 again after old. Then a count is
// lower, or the buckets are others, as the process made the histogram anew.
func (d *Distribution) resetSince(old *Distribution) bool {
	if d.Count < old.Count || !slices.Equal(d.Bounds, old.Bounds) {
		return true
	}
	before, oldBefore := 0.0, 0.0
	for i := range d.Counts {
		if d.Counts[i]-before < old.Counts[i]-oldBefore {
			return true
		}
		before, oldBefore = d.Counts[i], old.Counts[i]
	}
	if d.Count-before < old.Count-oldBefore {
		return true // of those above the last bound
	}
	if d.Native == nil || old.Native == nil {
		return (d.Native == nil) != (old.Native == nil)
	}
	return d.Native.DetectReset(old.Native)
}

// withSum returns d with another sum.
func (d *Distribution) withSum(sum ExactSum) *Distribution {
	out := *d
	out.Sum = sum
	return &out
}

// larger returns the one that counted more; of equal ones, and where a is nil, b.
func larger(a, b *Distribution) *Distribution {
	if a != nil && (b == nil || a.Count > b.Count) {
		return a
	}
	return b
}

// minus returns -d, without exemplars.
func (d *Distribution) minus() *Distribution {
	n := &Distribution{Count: -d.Count, Sum: d.Sum.minus(), Bounds: d.Bounds, Counts: make([]float64, len(d.Counts))}
	for i := range d.Counts {
		n.Counts[i] = -d.Counts[i]
	}
	if d.Native != nil {
		n.Native = d.Native.Copy().Mul(-1)
		n.Native.CounterResetHint = histogram.UnknownCounterReset
	}
	return n
}

// sumDistributions adds. The result does not depend on the order.
//
// Bounds that differ are united. At a bound that an instance lacks, it counts
// what it counts at its next lower one: these observations are certain to be
// below. So no count ever falls, neither from one bucket to the next nor in
// time.
//
// Native buckets get the coarsest resolution of all. As what was ever counted
// stays part of the sum, it is never finer again. Where some have native
// buckets, those that have none count in the native bucket of their classic
// bucket's bound.
func sumDistributions(list []*Distribution) *Distribution {
	if len(list) == 1 {
		return list[0]
	}
	sum := &Distribution{Bounds: uniteBounds(list)}
	sum.Counts = make([]float64, len(sum.Bounds))
	schema, native := maxSchema, false
	for _, d := range list {
		sum.Count += d.Count
		sum.Sum = sum.Sum.addAll(d.Sum)
		next, cumulative := 0, 0.0
		for i, bound := range sum.Bounds {
			for next < len(d.Bounds) && d.Bounds[next] <= bound {
				cumulative = d.Counts[next]
				next++
			}
			sum.Counts[i] += cumulative
		}
		sum.Exemplars = newestByBucket(sum.Exemplars, d.Exemplars)
		sum.NativeExemplars = newestExemplars(sum.NativeExemplars, d.NativeExemplars)
		if d.Native != nil {
			schema, native = min(schema, d.Native.Schema), true
		}
	}
	if native {
		sum.Native = sumNative(list, schema)
	}
	return sum
}

// sumNative adds native buckets at the resolution schema, the coarsest of list.
// It returns nil, so that only classic buckets are served, if the library finds
// fault with what was checked when it was pushed.
//
// The zero bucket ends where a bucket of that resolution ends, the first at or
// above the widest zero bucket of list. A process can merge its fine buckets into
// its zero bucket. That would cut a coarse bucket of the sum in two otherwise, and
// Prometheus takes it for a reset.
func sumNative(list []*Distribution, schema int32) *histogram.FloatHistogram {
	zero := 0.0
	for _, d := range list {
		if d.Native != nil {
			zero = max(zero, d.Native.ZeroThreshold)
		}
	}
	sum := &histogram.FloatHistogram{Schema: schema, ZeroThreshold: nativeBound(zero, schema)}
	for _, d := range list {
		n := d.Native
		if n == nil {
			n = d.asNative()
		}
		// All at one resolution before they are added: with several, where the
		// zero bucket ends would depend on the order.
		if n.Schema > schema {
			n = n.Copy()
			if err := n.ReduceResolution(schema); err != nil {
				return nil
			}
		}
		if _, _, _, err := sum.Add(n); err != nil {
			return nil
		}
	}
	return sum.Compact(0)
}

func uniteBounds(list []*Distribution) []float64 {
	bounds, same := list[0].Bounds, true
	for _, d := range list[1:] {
		same = same && slices.Equal(d.Bounds, bounds)
	}
	if same {
		return bounds
	}
	var all []float64
	for _, d := range list {
		all = append(all, d.Bounds...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// asNative returns the classic buckets as native ones of the finest resolution. Each
// counts in the bucket of its bound, +Inf included.
func (d *Distribution) asNative() *histogram.FloatHistogram {
	n := &histogram.FloatHistogram{Schema: maxSchema, Count: d.Count}
	var positive, negative []nativeBucket
	before := 0.0
	place := func(bound, cumulative float64) {
		count := cumulative - before
		before = cumulative
		switch {
		case count == 0:
		case bound > 0:
			positive = append(positive, nativeBucket{nativeIndex(bound, maxSchema), count})
		case bound < 0:
			negative = append(negative, nativeBucket{nativeIndex(-bound, maxSchema), count})
		default:
			n.ZeroCount += count
		}
	}
	for i, bound := range d.Bounds {
		place(bound, d.Counts[i])
	}
	place(math.Inf(1), d.Count)
	slices.Reverse(negative)
	n.PositiveSpans, n.PositiveBuckets = layOut(positive)
	n.NegativeSpans, n.NegativeBuckets = layOut(negative)
	return n
}

type nativeBucket struct {
	index int32
	count float64
}

// nativeIndex returns the index of the bucket of schema that v, above 0, falls
// into. Beside a bound it may be the neighbour's.
func nativeIndex(v float64, schema int32) int32 {
	if math.IsInf(v, 1) {
		return int32(math.Ldexp(1024, int(schema))) + 1
	}
	return int32(math.Ceil(math.Ldexp(math.Log2(v), int(schema))))
}

// nativeBound returns the lowest bound of a bucket of schema that is not below
// v, which is finite; of 0 it is 0.
func nativeBound(v float64, schema int32) float64 {
	if v == 0 {
		return 0
	}
	// The library's own bounds: those of the bucket and its neighbours.
	near := histogram.FloatHistogram{
		Schema:          schema,
		PositiveSpans:   []histogram.Span{{Offset: nativeIndex(v, schema) - 1, Length: 3}},
		PositiveBuckets: make([]float64, 3),
	}
	for it := near.PositiveBucketIterator(); it.Next(); {
		if upper := it.At().Upper; upper >= v {
			return upper
		}
	}
	return math.MaxFloat64
}

// layOut returns buckets, whose indices do not fall, as spans and counts.
func layOut(buckets []nativeBucket) (spans []histogram.Span, counts []float64) {
	next := int32(0)
	for i, b := range buckets {
		switch {
		case i > 0 && b.index == next-1:
			counts[len(counts)-1] += b.count
			continue
		case i > 0 && b.index == next:
			spans[len(spans)-1].Length++
		default:
			spans = append(spans, histogram.Span{Offset: b.index - next, Length: 1})
		}
		counts = append(counts, b.count)
		next = b.index + 1
	}
	return spans, counts
}

// newestByBucket returns the newer exemplar of each bucket; of equally old ones
// that of b. Neither is changed.
func newestByBucket(a, b []BucketExemplar) []BucketExemplar {
	if len(a) == 0 {
		return b
	}
	out := make([]BucketExemplar, 0, max(len(a), len(b)))
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].Bound < b[0].Bound:
			out, a = append(out, a[0]), a[1:]
		case a[0].Bound > b[0].Bound:
			out, b = append(out, b[0]), b[1:]
		default:
			newer := b[0]
			if a[0].Exemplar.Time > b[0].Exemplar.Time {
				newer = a[0]
			}
			out, a, b = append(out, newer), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// newestExemplars returns the newest of both, each once. Neither is changed.
func newestExemplars(a, b []Exemplar) []Exemplar {
	if len(a) == 0 {
		return b
	}
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, compareExemplars)
	all = slices.Compact(all)
	return all[max(0, len(all)-maxNativeExemplars):]
}
