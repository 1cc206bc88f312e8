package federation

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// process is one process of coderd: its counters start at 0.
type process struct {
	id       agent.Instance
	snapshot int64
	reg      *prometheus.Registry
	events   *prometheus.CounterVec
	seconds  prometheus.Counter
	waits    *prometheus.HistogramVec
	sizes    prometheus.Summary
	active   prometheus.Gauge
	value    float64
	final    bool
	pushedAt time.Time
}

// world is the federation under test and the naive model: plain sums of all
// that happened, in rational numbers.
type world struct {
	t       *rapid.T
	store   *memory
	f       *Federation
	now     time.Time
	procs   []*process
	next    byte
	pending map[*process][]func() // what happened since the newest good push
	events  map[string]float64
	seconds *big.Rat
	count   float64
	le1     float64
	sum     *big.Rat
	sizes   float64
	// last scrape
	samples map[string]float64
	native  *histogram.FloatHistogram
}

// A process that comes back after it was forgotten does count twice.
var worldOptions = Options{SeriesTTL: time.Minute, MaxInstances: 1000, ForgetAfter: 100_000 * time.Hour}

func (w *world) open() {
	var err error
	w.f, err = New(w.store, new(claims), worldOptions, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(w.t, err)
	require.NoError(w.t, w.f.load(context.Background(), w.now))
}

func (w *world) start() {
	w.next++
	p := &process{id: instanceID(w.next), reg: prometheus.NewRegistry()}
	p.events = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "events_total"}, []string{"kind"})
	p.seconds = prometheus.NewCounter(prometheus.CounterOpts{Name: "busy_seconds_total"})
	p.waits = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "wait_seconds", Buckets: []float64{0.5, 1, 2},
		NativeHistogramBucketFactor: rapid.SampledFrom([]float64{0, 1.1, 2}).Draw(w.t, "factor"),
	}, []string{"kind"})
	p.sizes = prometheus.NewSummary(prometheus.SummaryOpts{Name: "size_bytes"})
	p.active = prometheus.NewGauge(prometheus.GaugeOpts{Name: "coderd_api_concurrent_requests"})
	p.reg.MustRegister(p.events, p.seconds, p.waits, p.sizes, p.active)
	w.procs = append(w.procs, p)
}

func (w *world) pick() *process {
	return rapid.SampledFrom(w.procs).Draw(w.t, "process")
}

func (w *world) work() {
	p := w.pick()
	kind := rapid.SampledFrom([]string{"a", "b"}).Draw(w.t, "kind")
	v := rapid.Float64Range(0.001, 3).Draw(w.t, "seconds")
	p.events.WithLabelValues(kind).Inc()
	p.seconds.Add(v)
	p.waits.WithLabelValues("x").Observe(v)
	p.sizes.Observe(2)
	p.active.Set(v)
}

// push pushes a snapshot. What the process counted since its newest good one
// then belongs to the model.
func (w *world) push() {
	p := w.pick()
	p.snapshot++
	in, err := p.reg.Gather()
	require.NoError(w.t, err)
	fails := rapid.IntRange(0, 4).Draw(w.t, "store") == 0
	if fails {
		w.store.fail(errors.New("no"))
	}
	final := rapid.IntRange(0, 5).Draw(w.t, "final") == 0
	refused, err := w.f.Push(context.Background(), w.now, agent.Push{
		Instance: p.id, Snapshot: p.snapshot, Interval: time.Second, Final: final, Families: serialize(w.t, in...),
	})
	require.Empty(w.t, refused)
	if fails {
		require.Error(w.t, err)
		w.store.fail(nil)
		return
	}
	require.NoError(w.t, err)
	p.final, p.pushedAt = final, w.now
	w.learn(p, in)
}

// learn replaces what the model knows of a process.
func (w *world) learn(p *process, in []*dto.MetricFamily) {
	w.pending[p] = nil
	for _, f := range in {
		for _, m := range f.Metric {
			switch f.GetName() {
			case "events_total":
				kind, v := m.Label[0].GetValue(), m.Counter.GetValue()
				w.pending[p] = append(w.pending[p], func() { w.events[kind] += v })
			case "busy_seconds_total":
				v := m.Counter.GetValue()
				w.pending[p] = append(w.pending[p], func() { w.seconds.Add(w.seconds, new(big.Rat).SetFloat64(v)) })
			case "wait_seconds":
				h := m.Histogram
				w.pending[p] = append(w.pending[p], func() {
					w.count += float64(h.GetSampleCount())
					w.le1 += float64(h.Bucket[1].GetCumulativeCount())
					w.sum.Add(w.sum, new(big.Rat).SetFloat64(h.GetSampleSum()))
				})
			case "size_bytes":
				v := float64(m.Summary.GetSampleCount())
				w.pending[p] = append(w.pending[p], func() { w.sizes += v })
			case "coderd_api_concurrent_requests":
				p.value = m.Gauge.GetValue()
			}
		}
	}
}

func (w *world) pass() {
	w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 25 * time.Hour}).Draw(w.t, "passes"))
	w.f.expire(w.now)
}

func (w *world) fold() {
	fails := rapid.Bool().Draw(w.t, "store")
	if fails {
		w.store.fail(errors.New("no"))
	}
	before := text(w.t, w.f)
	_ = w.f.foldIdle(context.Background(), w.now)
	w.store.fail(nil)
	require.Equal(w.t, before, text(w.t, w.f))
}

// check compares a scrape with the one before and with the model.
func (w *world) check() {
	samples := check(w.t, w.f)
	for name, v := range w.samples {
		if name != `{__name__="coderd_api_concurrent_requests"}` {
			require.GreaterOrEqual(w.t, samples[name], v, name)
		}
	}
	w.samples = samples

	w.events, w.seconds, w.sum = make(map[string]float64), new(big.Rat), new(big.Rat)
	w.count, w.le1, w.sizes = 0, 0, 0
	active, live := 0.0, false
	for _, p := range w.procs {
		for _, f := range w.pending[p] {
			f()
		}
		if !p.pushedAt.IsZero() && !p.final && w.now.Before(p.pushedAt.Add(time.Minute)) {
			live = true
			active += p.value
		}
	}
	for kind, want := range w.events {
		require.Equal(w.t, want, samples[`{__name__="events_total", kind="`+kind+`"}`])
	}
	near, _ := w.seconds.Float64()
	require.Equal(w.t, near, samples[`{__name__="busy_seconds_total"}`])
	require.Equal(w.t, w.count, samples[`{__name__="wait_seconds_count", kind="x"}`])
	require.Equal(w.t, w.le1, samples[`{__name__="wait_seconds_bucket", kind="x", le="1.0"}`]+samples[`{__name__="wait_seconds_bucket", kind="x", le="1"}`])
	near, _ = w.sum.Float64()
	require.Equal(w.t, near, samples[`{__name__="wait_seconds_sum", kind="x"}`])
	require.Equal(w.t, w.sizes, samples[`{__name__="size_bytes_count"}`])
	_, served := samples[`{__name__="coderd_api_concurrent_requests"}`]
	require.Equal(w.t, live, served)
	require.InDelta(w.t, active, samples[`{__name__="coderd_api_concurrent_requests"}`], 1e-9)

	served = false
	if m := families(w.t, w.f)["wait_seconds"]; m != nil && m.Metric[0].Histogram.Schema != nil {
		d, r := decodeHistogram(m.Metric[0].Histogram)
		require.Nil(w.t, r)
		if w.native != nil {
			require.False(w.t, d.Native.DetectReset(w.native), "%v after %v", d.Native, w.native)
		}
		served, w.native = true, d.Native
	}
	require.Equal(w.t, w.native != nil, served, "native once, native for ever")
}

// Sums never fall from scrape to scrape and are exact, whatever instances, the
// store and the service do.
func TestSums(t *testing.T) {
	rapid.Check(t, testSums)
}

func testSums(t *rapid.T) {
	w := &world{t: t, store: new(memory), now: time.Now(), pending: make(map[*process][]func())}
	w.open()
	w.start()
	t.Repeat(map[string]func(*rapid.T){
		"start":   func(*rapid.T) { w.start() },
		"work":    func(*rapid.T) { w.work() },
		"push":    func(*rapid.T) { w.push() },
		"push2":   func(*rapid.T) { w.push() },
		"pass":    func(*rapid.T) { w.pass() },
		"fold":    func(*rapid.T) { w.fold() },
		"restart": func(*rapid.T) { w.open() },
		"":        func(*rapid.T) { w.check() },
	})
}

// An exact sum is the rational one, rounded once, in any order.
func TestExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOf(rapid.Custom(func(t *rapid.T) float64 {
			return math.Ldexp(float64(rapid.Int64().Draw(t, "mantissa")), rapid.IntRange(-120, 120).Draw(t, "exponent"))
		})).Draw(t, "values")
		sum, want := exact(nil), new(big.Rat)
		for _, v := range values {
			sum = sum.plus(v)
			want.Add(want, new(big.Rat).SetFloat64(v))
		}
		near, _ := want.Float64()
		require.Equal(t, near, sum.value())
		require.Zero(t, sum.plusAll(sum.minus()).value())
	})
	// Half way between two numbers, and a little more or less.
	half := exact(nil).plus(1).plus(0x1p-53)
	require.Equal(t, 1.0, half.value())
	require.Equal(t, 1+0x1p-52, half.plus(0x1p-106).value())
	require.Equal(t, 1.0, half.plus(-0x1p-107).value())
	require.Equal(t, 1+0x1p-51, exact(nil).plus(1+0x1p-52).plus(0x1p-53).value())
	require.Equal(t, 1+0x1p-52, exact(nil).plus(1+0x1p-52).plus(0x1p-53).plus(-0x1p-107).value())
	most := exact{math.MaxFloat64}
	require.Equal(t, math.Inf(1), most.plus(math.MaxFloat64).plus(1).value())
	require.Equal(t, math.Inf(1), exact{1}.plus(math.Inf(1)).plus(5).value())
	require.True(t, math.IsNaN(exact{1}.plus(math.NaN()).plus(5).value()))
}
