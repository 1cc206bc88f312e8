package batcher

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Why a batch was flushed: the label reason of Coder's families.
const (
	flushCapacity  = "capacity"
	flushScheduled = "scheduled"
	flushShutdown  = "shutdown"
)

// dropReason is why an entry did not get into the database.
type dropReason int

const (
	dropKeyBytes dropReason = iota
	dropEmptyKey
	dropInvalidKey
	dropKeyLength
	dropCapacity
	dropAgentShare
	dropOwnerShare
	dropRejected
	dropDeregistered
	numDropReasons
)

// String is the label reason.
func (r dropReason) String() string {
	return [numDropReasons]string{
		"key_bytes", "empty_key", "invalid_key", "key_length", "capacity", "agent_share", "owner_share", "rejected", "deregistered",
	}[r]
}

// ledger counts entries by what became of them. At any moment received is the
// sum of the others and of what is pending.
type ledger struct {
	received, flushed, coalesced, unchanged int64
	dropped                                 [numDropReasons]int64
}

// metrics are those of the flushes. Names, help and buckets of the first seven
// are Coder's.
type metrics struct {
	batchSize        prometheus.Histogram
	batchUtilization prometheus.Histogram
	batches          *prometheus.CounterVec
	droppedKeys      prometheus.Counter
	flushDuration    *prometheus.HistogramVec
	flushed          prometheus.Counter
	publishErrors    prometheus.Counter

	flushErrors prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	reasons := ownmetrics.Values("reason", flushCapacity, flushScheduled, flushShutdown)
	m := &metrics{
		batchSize: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "coderd_agentapi_metadata_batch_size",
			Help:    "Total number of metadata entries in each batch, updated before flushes.",
			Buckets: []float64{10, 25, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500},
		}),
		batchUtilization: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "coderd_agentapi_metadata_batch_utilization",
			Help:    "Number of metadata keys per agent in each batch, updated before flushes.",
			Buckets: []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 40, 80, 160},
		}),
		batches: ownmetrics.CounterVec("coderd_agentapi_metadata_batches_total", "Total number of metadata batches flushed.", reasons),
		droppedKeys: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coderd_agentapi_metadata_dropped_keys_total",
			Help: "Total number of metadata keys dropped due to capacity limits.",
		}),
		flushDuration: ownmetrics.HistogramVec(prometheus.HistogramOpts{
			Name:    "coderd_agentapi_metadata_flush_duration_seconds",
			Help:    "Time taken to flush metadata batch to database and pubsub.",
			Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		}, reasons),
		flushed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coderd_agentapi_metadata_flushed_total",
			Help: "Total number of unique metadatas flushed.",
		}),
		publishErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coderd_agentapi_metadata_publish_errors_total",
			Help: "Total number of metadata batch pubsub publish calls that have resulted in an error.",
		}),
		flushErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_metadata_flush_errors_total",
			Help: "Flushes of metadata that the database did not take; they are tried again.",
		}),
	}
	return m, ownmetrics.Register(reg, m.batchSize, m.batchUtilization, m.batches, m.droppedKeys, m.flushDuration,
		m.flushed, m.publishErrors, m.flushErrors)
}

// registerGauges registers what is pending now, and its limits.
func (b *Batcher) registerGauges(reg prometheus.Registerer) error {
	err := ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("metadata_pending", b.opts.Load, func(o *Options) int { return o.MaxPending }, b.count((*pending).len)),
		ownmetrics.Of("metadata_pending_per_agent", b.opts.Load, func(o *Options) int { return o.MaxPendingPerAgent }, b.count((*pending).mostOfAgent)),
		ownmetrics.Of("metadata_pending_per_owner", b.opts.Load, func(o *Options) int { return o.MaxPendingPerOwner }, b.count((*pending).mostOfOwner)),
	)
	if err != nil {
		return err
	}
	known := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_metadata_known_values",
		Help: "Stored metadata values that are not written again while agents report them unchanged; at most as many as may be pending.",
	}, b.count(func(p *pending) int { return p.stored.values() }))
	return ownmetrics.Register(reg, newEntriesCollector(b.snapshot), known)
}

// entriesCollector serves the ledger of one moment, so that its law holds in
// every scrape.
type entriesCollector struct {
	now                       func() snapshot
	entries, dropped, pending *prometheus.Desc
	quarantined, confined     *prometheus.Desc
	oldest, lastFlush         *prometheus.Desc
}

func newEntriesCollector(now func() snapshot) *entriesCollector {
	return &entriesCollector{
		now: now,
		entries: prometheus.NewDesc("agentstatsd_metadata_entries_total",
			"Metadata entries by what became of them: received is the sum of the others and of those pending.",
			[]string{"outcome"}, nil),
		dropped: prometheus.NewDesc("agentstatsd_metadata_dropped_entries_total",
			"Metadata entries that were not stored, nor a newer value of their key.",
			[]string{"reason"}, nil),
		pending: prometheus.NewDesc("agentstatsd_metadata_pending",
			"Metadata entries that wait for the database or are being written.",
			nil, nil),
		oldest: prometheus.NewDesc("agentstatsd_metadata_oldest_pending_seconds",
			"Time for which the oldest metadata entry has been pending, in seconds, but of agents whose metadata is written apart; 0: none is.",
			nil, nil),
		lastFlush: prometheus.NewDesc("agentstatsd_metadata_last_flush_seconds",
			"Time that the last flush of metadata took, also if it failed, in seconds; 0: there was none.",
			nil, nil),
		quarantined: prometheus.NewDesc("agentstatsd_metadata_quarantined_agents",
			"Agents whose metadata is written apart, a few rows at a time, as the database refused some of it.",
			nil, nil),
		confined: prometheus.NewDesc("agentstatsd_metadata_quarantines_total",
			"Times that an agent's metadata began to be written apart, as the database refused some of it.",
			nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *entriesCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.entries
	ch <- c.dropped
	ch <- c.pending
	ch <- c.oldest
	ch <- c.lastFlush
	ch <- c.quarantined
	ch <- c.confined
}

// Collect implements prometheus.Collector.
func (c *entriesCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.now()
	l := s.ledger
	dropped := int64(0)
	for reason, n := range l.dropped {
		dropped += n
		ch <- prometheus.MustNewConstMetric(c.dropped, prometheus.CounterValue, float64(n), dropReason(reason).String())
	}
	for outcome, n := range map[string]int64{
		"received": l.received, "flushed": l.flushed, "coalesced": l.coalesced, "unchanged": l.unchanged, "dropped": dropped,
	} {
		ch <- prometheus.MustNewConstMetric(c.entries, prometheus.CounterValue, float64(n), outcome)
	}
	ch <- prometheus.MustNewConstMetric(c.pending, prometheus.GaugeValue, float64(s.pending))
	ch <- prometheus.MustNewConstMetric(c.oldest, prometheus.GaugeValue, s.oldest.Seconds())
	ch <- prometheus.MustNewConstMetric(c.lastFlush, prometheus.GaugeValue, s.lastFlush.Seconds())
	ch <- prometheus.MustNewConstMetric(c.quarantined, prometheus.GaugeValue, float64(s.quarantined))
	ch <- prometheus.MustNewConstMetric(c.confined, prometheus.CounterValue, float64(s.confined))
}
