package stock

import (
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// flushInterval is the time between two batches of metadata.
const flushInterval = 5 * time.Second

// metrics are those of a stock coderd: what users do, the state of agents and their stats as
// of the newest round, what agents forward, and the batches of their metadata.
type metrics struct {
	coderd  *Coderd
	handler http.Handler

	builds                      *prometheus.HistogramVec
	agentsSeconds, statsSeconds prometheus.Histogram

	batchSize, batchUtilization     prometheus.Histogram
	batches                         *prometheus.CounterVec
	flushSeconds                    *prometheus.HistogramVec
	flushed, dropped, publishErrors prometheus.Counter

	mu sync.Mutex
	// Guarded by mu.

	states, stats []prometheus.Metric
	forwarded     map[string]*forwarded
	cleaned       time.Time
	pending       map[metadataKey]struct{}
}

// metadataKey is a key of an agent's metadata.
type metadataKey struct {
	agent uuid.UUID
	key   string
}

func newMetrics(c *Coderd) (*metrics, error) {
	reg := prometheus.NewRegistry()
	factory := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return factory.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return factory.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	rounds := []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10, 30}
	m := &metrics{
		coderd: c,
		builds: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coderd_template_workspace_build_duration_seconds", Help: "Duration from workspace build creation to agent ready, by template.",
			Buckets: []float64{1, 10, 30, 60, 300, 600, 1800, 3600}, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"template_name", "organization_name", "transition", "status", "is_prebuild"}),
		agentsSeconds: histogram("coderd_prometheusmetrics_agents_execution_seconds", "Histogram for duration of agents metrics collection in seconds.", rounds...),
		statsSeconds:  histogram("coderd_prometheusmetrics_agentstats_execution_seconds", "Histogram for duration of agent stats metrics collection in seconds.", rounds...),

		batchSize:        histogram("coderd_agentapi_metadata_batch_size", "Total number of metadata entries in each batch, updated before flushes.", 10, 25, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500),
		batchUtilization: histogram("coderd_agentapi_metadata_batch_utilization", "Number of metadata keys per agent in each batch, updated before flushes.", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 40, 80, 160),
		batches:          factory.NewCounterVec(prometheus.CounterOpts{Name: "coderd_agentapi_metadata_batches_total", Help: "Total number of metadata batches flushed."}, []string{"reason"}),
		flushSeconds: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coderd_agentapi_metadata_flush_duration_seconds", Help: "Time taken to flush metadata batch to database and pubsub.",
			Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		}, []string{"reason"}),
		flushed:       counter("coderd_agentapi_metadata_flushed_total", "Total number of unique metadatas flushed."),
		dropped:       counter("coderd_agentapi_metadata_dropped_keys_total", "Total number of metadata keys dropped due to capacity limits."),
		publishErrors: counter("coderd_agentapi_metadata_publish_errors_total", "Total number of metadata batch pubsub publish calls that have resulted in an error."),

		forwarded: make(map[string]*forwarded), pending: make(map[metadataKey]struct{}),
	}
	if err := reg.Register(m); err != nil {
		return nil, err
	}
	// Any error is answered 500, without a sample.
	m.handler = promhttp.InstrumentMetricHandler(reg, promhttp.HandlerFor(prometheus.Gatherers{c.users, reg}, promhttp.HandlerOpts{}))
	return m, nil
}

// Describe implements prometheus.Collector: what agents forward is not known before.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.states {
		ch <- s
	}
	for _, s := range m.stats {
		ch <- s
	}
	for _, f := range m.forwarded {
		ch <- f.metric()
	}
}

// round makes the gauges anew.
func (m *metrics) round(now time.Time) {
	began := time.Now()
	states := m.coderd.stateSeries(now)
	m.agentsSeconds.Observe(time.Since(began).Seconds())
	began = time.Now()
	stats := m.coderd.statsSeries(now)
	m.statsSeconds.Observe(time.Since(began).Seconds())

	m.mu.Lock()
	defer m.mu.Unlock()
	m.states = states
	if len(stats) > 0 { // else what was before stays
		m.stats = stats
	}
	if now.Sub(m.cleaned) >= forwardedExpiry {
		m.cleaned = now
		for key, f := range m.forwarded {
			if now.After(f.expiry) {
				delete(m.forwarded, key)
			}
		}
	}
}

func (m *metrics) addMetadata(agent uuid.UUID, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending[metadataKey{agent, key}] = struct{}{}
}

// flush writes the batch of metadata, to nowhere.
func (m *metrics) flush() {
	began := time.Now()
	m.mu.Lock()
	perAgent := make(map[uuid.UUID]int)
	for k := range m.pending {
		perAgent[k.agent]++
	}
	size := len(m.pending)
	clear(m.pending)
	m.mu.Unlock()
	if size == 0 {
		return
	}
	for _, keys := range perAgent {
		m.batchUtilization.Observe(float64(keys))
	}
	m.batchSize.Observe(float64(size))
	m.flushed.Add(float64(size))
	m.batches.WithLabelValues("scheduled").Inc()
	m.flushSeconds.WithLabelValues("scheduled").Observe(time.Since(began).Seconds())
}
