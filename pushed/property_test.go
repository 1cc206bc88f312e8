package pushed

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// process is one process of coderd: its counters start at 0.
type process struct {
	id      agent.Instance
	reg     *prometheus.Registry
	events  *prometheus.CounterVec
	seconds prometheus.Counter
	waits   *prometheus.HistogramVec
	sizes   prometheus.Summary
	active  prometheus.Gauge
	newest  snapshot // that was pushed, stored or not
	// round of events by kind: how often they began anew.
	round map[string]int
	// What the model knows of the newest that is stored.
	stored   int64
	counted  map[string]round
	base     map[string]float64 // of rounds that are over
	sum      float64            // the last one that was a number
	value    float64
	final    bool
	pushedAt time.Time
}

type snapshot struct {
	number int64
	final  bool
	in     []*dto.MetricFamily
	round  map[string]int
}

// round is what was counted since a counter began anew.
type round struct {
	number int
	value  float64
}

// world has the families under test on several replicas over one store. Beside them is
// a naive model: plain sums of all that happened, in rational numbers.
type world struct {
	t        *rapid.T
	store    *memory
	opts     Options
	lease    lease
	replicas []*Families
	codec    *family.Codec
	now      time.Time
	procs    []*process
	next     byte
	// nested is true within a call of the store that another replica makes.
	nested  bool
	pending map[*process][]func() // what happened until the newest stored push
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

const seriesTTL = time.Minute

func newWorld(t *rapid.T) *world {
	w := &world{t: t, store: new(memory), now: time.Now(), pending: make(map[*process][]func())}
	w.opts = Options{SeriesTTL: seriesTTL, ForgetAfter: 100_000 * time.Hour}
	w.opts.MaxInstances = rapid.SampledFrom([]int{4, 1000}).Draw(t, "instances")
	var err error
	w.codec, err = family.NewCodec()
	require.NoError(t, err)
	w.replicas = make([]*Families, rapid.IntRange(1, 3).Draw(t, "replicas"))
	for i := range w.replicas {
		w.open(i)
	}
	w.lease.give(0)
	return w
}

// open starts a replica in place of one that was killed.
func (w *world) open(replica int) {
	opts := w.opts
	opts.Lease = w.lease.of(replica)
	f, err := New(w.store, new(reserver), opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(w.t, err)
	require.NoError(w.t, f.load(context.Background(), w.now))
	w.replicas[replica] = f
}

func (w *world) start() {
	w.next++
	p := &process{
		id: instanceID(w.next), reg: prometheus.NewRegistry(),
		round: make(map[string]int), counted: make(map[string]round), base: make(map[string]float64),
	}
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

func (w *world) pickReplica() int {
	return rapid.IntRange(0, len(w.replicas)-1).Draw(w.t, "replica")
}

// alive reports whether gauges of p are served.
func (w *world) alive(p *process) bool {
	return p.stored > 0 && !p.final && w.now.Before(p.pushedAt.Add(seriesTTL))
}

// disturb disturbs some calls of the store during a step of a replica. Another replica
// makes a step, or the call fails, before or after it took effect. It returns whether a
// call failed.
func (w *world) disturb(replica int, do func()) (failed bool) {
	if w.nested {
		do()
		return false
	}
	kinds := []string{"", "", "error", "lost", "other"}
	kind := rapid.SampledFrom(kinds).Draw(w.t, "disturbance")
	if kind == "" {
		do()
		return false
	}
	at := rapid.IntRange(0, 5).Draw(w.t, "call")
	w.store.script = func() (err, lost error) {
		at--
		switch {
		case at != -1 || w.nested:
		case kind == "error":
			failed = true
			return errors.New("no"), nil
		case kind == "lost":
			failed = true
			return nil, errors.New("the answer is lost")
		case len(w.replicas) > 1:
			w.nested = true
			defer func() { w.nested = false }()
			other := (replica + 1) % len(w.replicas)
			switch rapid.SampledFrom([]string{"push", "fold", "follow"}).Draw(w.t, "other") {
			case "push":
				w.push(other)
			case "fold": // as if the replica that called stood still for a day
				w.now = w.now.Add(25 * time.Hour)
				w.lease.give(other)
				require.NoError(w.t, w.replicas[other].follow(context.Background(), w.now))
				w.replicas[other].expire(w.now)
				require.NoError(w.t, w.replicas[other].foldIdle(context.Background(), w.now))
			default:
				require.NoError(w.t, w.replicas[other].follow(context.Background(), w.now))
			}
		}
		return nil, nil
	}
	defer func() { w.store.script = nil }()
	do()
	return failed
}

func (w *world) work() {
	p := w.pick()
	kind := rapid.SampledFrom([]string{"a", "b"}).Draw(w.t, "kind")
	v := rapid.Float64Range(0.001, 3).Draw(w.t, "seconds")
	if rapid.IntRange(0, 9).Draw(w.t, "anew") == 0 {
		// Its created timestamp says so, also if it counts to as much as before.
		p.events.DeleteLabelValues(kind)
		p.round[kind]++
		p.events.WithLabelValues(kind).Add(float64(rapid.IntRange(0, 5).Draw(w.t, "events")))
	}
	if rapid.IntRange(0, 19).Draw(w.t, "NaN") == 0 {
		p.waits.WithLabelValues("x").Observe(math.NaN())
	}
	p.events.WithLabelValues(kind).Inc()
	p.seconds.Add(v)
	p.waits.WithLabelValues("x").Observe(v)
	p.sizes.Observe(2)
	p.active.Set(v)
}

// push pushes a snapshot to a replica, the newest again or a new one. What is
// stored belongs to the model.
func (w *world) push(replica int) {
	p := w.pick()
	// One that is not alive can be forgotten, and would count twice.
	if w.opts.MaxInstances < 1000 && p.stored > 0 && !w.alive(p) {
		return
	}
	if p.newest.number == 0 || rapid.IntRange(0, 3).Draw(w.t, "again") > 0 {
		in, err := p.reg.Gather()
		require.NoError(w.t, err)
		p.newest = snapshot{p.newest.number + 1, rapid.IntRange(0, 5).Draw(w.t, "final") == 0, in, maps.Clone(p.round)}
	}
	s, now := p.newest, w.now
	var refused []agent.PushRefusal
	var err error
	failed := w.disturb(replica, func() {
		refused, err = w.replicas[replica].Push(context.Background(), now, agent.Push{
			Instance: p.id, Snapshot: s.number, Interval: time.Second, Final: s.final, Families: serialize(w.t, s.in...),
		})
	})
	for _, r := range refused {
		require.Equal(w.t, "invalid_sum", r.Reason)
	}
	stored := int64(0)
	if r, ok := w.store.rows[p.id]; ok {
		row, _, err := w.codec.Decode(r.Data, false)
		require.NoError(w.t, err)
		stored = row.Snapshot
	}
	switch {
	case err == nil:
		require.GreaterOrEqual(w.t, stored, s.number)
	case !failed:
		require.ErrorContains(w.t, err, "instances are alive")
	}
	if stored == s.number && p.stored < s.number {
		p.stored, p.final, p.pushedAt = s.number, s.final, now
		w.learn(p, s)
	}
}

// learn replaces what the model knows of a process.
func (w *world) learn(p *process, s snapshot) {
	w.pending[p] = nil
	for _, f := range s.in {
		for _, m := range f.Metric {
			switch f.GetName() {
			case "events_total":
				kind, v := m.Label[0].GetValue(), m.Counter.GetValue()
				if was := p.counted[kind]; was.number != s.round[kind] {
					p.base[kind] += was.value
				}
				p.counted[kind] = round{s.round[kind], v}
				v += p.base[kind]
				w.pending[p] = append(w.pending[p], func() { w.events[kind] += v })
			case "busy_seconds_total":
				v := m.Counter.GetValue()
				w.pending[p] = append(w.pending[p], func() { w.seconds.Add(w.seconds, new(big.Rat).SetFloat64(v)) })
			case "wait_seconds":
				h := m.Histogram
				if !math.IsNaN(h.GetSampleSum()) {
					p.sum = h.GetSampleSum()
				}
				sum := p.sum
				w.pending[p] = append(w.pending[p], func() {
					w.count += float64(h.GetSampleCount())
					w.le1 += float64(h.Bucket[1].GetCumulativeCount())
					w.sum.Add(w.sum, new(big.Rat).SetFloat64(sum))
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
	for _, f := range w.replicas {
		f.expire(w.now)
	}
}

// fold has a replica fold. What is served stays the same, unless it is of what
// others did.
func (w *world) fold() {
	replica := w.pickReplica()
	f := w.replicas[replica]
	before, rows := text(w.t, f), testutil.ToFloat64(f.metrics.rowsRead)
	_ = w.disturb(replica, func() { _ = f.foldIdle(context.Background(), w.now) })
	if f.serves() && testutil.ToFloat64(f.metrics.rowsRead) == rows {
		require.Equal(w.t, before, text(w.t, f))
	}
}

func (w *world) follow() {
	replica := w.pickReplica()
	_ = w.disturb(replica, func() { _ = w.replicas[replica].follow(context.Background(), w.now) })
}

// lead gives the lease to a replica, which serves when it has followed.
func (w *world) lead() {
	w.lease.give(w.pickReplica())
	for _, f := range w.replicas {
		require.Empty(w.t, text(w.t, f))
	}
}

// check compares a scrape of the leader with the one before, of whichever
// leader, and with the model.
func (w *world) check() {
	if rapid.Bool().Draw(w.t, "unseen") {
		return
	}
	leader := w.replicas[w.lease.holder]
	_ = w.disturb(w.lease.holder, func() { _ = leader.follow(context.Background(), w.now) })
	if leader.serves() {
		w.scrape(leader) // of what another pushed meanwhile it has all or nothing
	}
	leader = w.replicas[w.lease.holder]
	require.NoError(w.t, leader.follow(context.Background(), w.now))
	leader.expire(w.now)
	for _, f := range w.replicas {
		if f != leader {
			require.Empty(w.t, text(w.t, f))
			require.Empty(w.t, protobuf(w.t, f))
		}
	}
	samples := w.scrape(leader)

	w.events, w.seconds, w.sum = make(map[string]float64), new(big.Rat), new(big.Rat)
	w.count, w.le1, w.sizes = 0, 0, 0
	active, live := 0.0, false
	for _, p := range w.procs {
		for _, f := range w.pending[p] {
			f()
		}
		if w.alive(p) {
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
	if m := families(w.t, leader)["wait_seconds"]; m != nil && m.Metric[0].Histogram.Schema != nil {
		native := nativeServed(w.t, leader)
		if w.native != nil {
			require.False(w.t, native.DetectReset(w.native), "%v after %v", native, w.native)
		}
		served, w.native = true, native
	}
	require.Equal(w.t, w.native != nil, served, "native once, native for ever")
}

// scrape compares a scrape with the one before.
func (w *world) scrape(leader *Families) map[string]float64 {
	samples := check(w.t, leader)
	for name, v := range w.samples {
		if name != `{__name__="coderd_api_concurrent_requests"}` {
			require.GreaterOrEqual(w.t, samples[name], v, name)
		}
	}
	w.samples = samples
	return samples
}

// Sums never fall from scrape to scrape and are exact, whatever instances, the
// store and the replicas do.
func TestSums(t *testing.T) {
	rapid.Check(t, testSums)
}

func testSums(t *rapid.T) {
	w := newWorld(t)
	w.start()
	t.Repeat(map[string]func(*rapid.T){
		"start":   func(*rapid.T) { w.start() },
		"work":    func(*rapid.T) { w.work() },
		"push":    func(*rapid.T) { w.push(w.pickReplica()) },
		"push2":   func(*rapid.T) { w.push(w.pickReplica()) },
		"pass":    func(*rapid.T) { w.pass() },
		"fold":    func(*rapid.T) { w.fold() },
		"follow":  func(*rapid.T) { w.follow() },
		"lead":    func(*rapid.T) { w.lead() },
		"restart": func(*rapid.T) { w.open(w.pickReplica()) },
		"":        func(*rapid.T) { w.check() },
	})
}
