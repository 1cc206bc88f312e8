package reports

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Reasons of dropped reports, and failed calls of the database, as the counters label
// them.
const (
	droppedPending      = "pending_limit"
	droppedPendingBytes = "pending_bytes_limit"
	droppedAgent        = "agent_limit"
	droppedFull         = "subscription_limit"
	droppedRemoved      = "subscription_removed"
	droppedRejected     = "rejected"
	droppedShutdown     = "shutdown"

	errorPoll    = "poll"
	errorWrite   = "write"
	errorDeliver = "deliver"
)

type metrics struct {
	written, writes, lost prometheus.Counter
	found                 prometheus.Counter
	dropped, errors       *prometheus.CounterVec
	delivered, batches    prometheus.Counter
	superseded, restored  prometheus.Counter
	expired, unconfirmed  prometheus.Counter
	refused, reduced      prometheus.Counter
	sums, sumBytes        prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_" + name, Help: help})
	}
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		return ownmetrics.CounterVec("agentstatsd_"+name, help, ownmetrics.Values(label, values...))
	}
	m := &metrics{
		written:     counter("reports_written_total", "Reports that were added to subscriptions in the database, once for each subscription."),
		writes:      counter("report_writes_total", "Transactions that added reports to the subscriptions; one that was tried again counts once."),
		lost:        counter("report_writes_lost_total", "Transactions that added reports and that the database has lost, by a failover or a restore."),
		found:       counter("reports_repeated_total", "Reports that were not added as a subscription had them already, because their agents sent them again; once for each subscription."),
		dropped:     vec("reports_dropped_total", "Reports that were dropped. Those beyond the limit of a subscription, or for a removed one, count once for each subscription, the others once. Agents send those of the reason shutdown again.", "reason", droppedPending, droppedPendingBytes, droppedAgent, droppedFull, droppedRemoved, droppedRejected, droppedShutdown),
		errors:      vec("report_errors_total", "Calls of the database for subscriptions that failed and are tried again.", "call", errorPoll, errorWrite, errorDeliver),
		delivered:   counter("reports_delivered_total", "Reports in batches that were sent to watchers, those of repeated batches included."),
		batches:     counter("report_batches_total", "Batches of reports that were sent to watchers, repeated ones included."),
		superseded:  counter("report_streams_superseded_total", "Streams of subscriptions that ended as a newer one owns the name."),
		restored:    counter("report_subscriptions_restored_total", "Subscriptions whose watcher has processed a batch that the database does not have: some reports may be sent again."),
		expired:     counter("report_subscriptions_expired_total", "Subscriptions removed as they had no stream for too long."),
		unconfirmed: counter("report_subscriptions_unconfirmed_total", "Subscriptions that this replica started although another one had not confirmed them for 10 s. Attempts with an unknown outcome are included."),
		reduced:     counter("reports_reduced_total", "Reports of which only the counts are kept, as there is no room in memory for the rest."),
		refused:     counter("report_subscriptions_refused_total", "Subscriptions refused as there are too many."),
		sumBytes:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_report_sums_bytes", Help: "Bytes of the encoded newest reports of agents with sums in the database, of the subscription that has the most."}),
		sums:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_report_sums", Help: "Agents with sums in the database that are in no batch, of the subscription that has the most."}),
	}
	return m, ownmetrics.Register(reg, m.written, m.writes, m.lost, m.found, m.dropped, m.errors, m.delivered, m.batches,
		m.superseded, m.restored, m.expired, m.unconfirmed, m.refused, m.reduced, m.sums, m.sumBytes)
}

// registerGauges registers the gauges of what the replica has now, and the limits.
func (r *Reports) registerGauges(reg prometheus.Registerer) error {
	of := func(f func() int) func() float64 { return func() float64 { return float64(r.count(f)) } }
	err := ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("report_subscriptions", r.opts.Load, func(o *Options) int { return o.MaxSubscriptions }, of(func() int { return len(r.subscriptions) })),
		ownmetrics.Of("report_sums", r.opts.Load, func(o *Options) int { return o.MaxSums }, ownmetrics.Value(r.metrics.sums)),
		ownmetrics.Of("report_sum_bytes", r.opts.Load, func(o *Options) int { return o.MaxSumBytes }, ownmetrics.Value(r.metrics.sumBytes)),
		ownmetrics.Of("reports_pending", r.opts.Load, func(o *Options) int { return o.MaxPending }, of(func() int { return r.pending })),
		ownmetrics.Of("reports_pending_bytes", r.opts.Load, func(o *Options) int { return o.MaxPendingBytes }, of(func() int { return r.pendingBytes })),
	)
	if err != nil {
		return err
	}
	return ownmetrics.Register(reg,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_subscriptions", Help: "Subscriptions to reports that this replica adds to.",
		}, func() float64 { return float64(r.count(func() int { return len(r.subscriptions) })) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_sums_pending", Help: "Agents whose reports wait to be written to subscriptions.",
		}, func() float64 { return float64(r.count(r.unwrittenLocked)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_sums_pending_bytes", Help: "Memory of the reports that wait to be written, in bytes, without the batch that is being written.",
		}, func() float64 { return float64(r.count(func() int { return r.pendingBytes })) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_streams", Help: "Open streams of subscriptions.",
		}, func() float64 { return float64(r.count(func() int { return len(r.streams) })) }),
	)
}

// unwrittenLocked counts the agents whose reports the database does not have yet.
func (r *Reports) unwrittenLocked() int {
	n := r.pending
	if r.frozen != nil {
		n += len(r.frozen.agents)
	}
	for _, half := range r.halves {
		n += len(half.agents)
	}
	return n
}

func (r *Reports) count(f func() int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f()
}
