package reports

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Why reports do not reach a subscription, and which calls of the database fail, as
// the counters label them.
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
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_" + name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value)
		}
		return v
	}
	m := &metrics{
		written:     counter("reports_written_total", "Reports that were added to subscriptions in the database, once for each subscription."),
		writes:      counter("report_writes_total", "Transactions that added reports to the subscriptions; one that was tried again counts once."),
		lost:        counter("report_writes_lost_total", "Transactions that added reports and that the database does not have any more."),
		found:       counter("reports_found_total", "Reports that were not added as a subscription had them already: their agents sent them again. Once for each subscription."),
		dropped:     vec("reports_dropped_total", "Reports that a subscription does not get: those that are written and beyond its limit, or for a removed one, once for each subscription; the others once. Those of the reason shutdown are sent again by their agents.", "reason", droppedPending, droppedPendingBytes, droppedAgent, droppedFull, droppedRemoved, droppedRejected, droppedShutdown),
		errors:      vec("report_errors_total", "Calls of the database for subscriptions that failed and are tried again.", "call", errorPoll, errorWrite, errorDeliver),
		delivered:   counter("reports_delivered_total", "Reports in batches that were sent to watchers, again included."),
		batches:     counter("report_batches_total", "Batches of reports that were sent to watchers, again included."),
		superseded:  counter("report_streams_superseded_total", "Streams of subscriptions that ended as a newer one has the name."),
		restored:    counter("report_subscriptions_restored_total", "Subscriptions whose watcher has processed a batch that the database does not have: some reports may be sent again."),
		expired:     counter("report_subscriptions_expired_total", "Subscriptions removed as no stream had them for too long."),
		unconfirmed: counter("report_subscriptions_unconfirmed_total", "Subscriptions that this replica began although another had not confirmed them for 10 s. One that was to begin and whose stream ended before the outcome was known is included."),
		reduced:     counter("reports_reduced_total", "Reports of which only the counts are kept, as there is no room in memory for the rest."),
		refused:     counter("report_subscriptions_refused_total", "Subscriptions refused as there are too many."),
		sumBytes:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_report_sums_bytes", Help: "Bytes of the newest reports of these, of the subscription that has the most."}),
		sums:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_report_sums", Help: "Agents with reports in the database that no batch has, of the subscription that has the most."}),
	}
	return m, ownmetrics.Register(reg, m.written, m.writes, m.lost, m.found, m.dropped, m.errors, m.delivered, m.batches,
		m.superseded, m.restored, m.expired, m.unconfirmed, m.refused, m.reduced, m.sums, m.sumBytes)
}

// registerGauges registers the gauges of what the replica has now.
func (r *Reports) registerGauges(reg prometheus.Registerer) error {
	return ownmetrics.Register(reg,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_subscriptions", Help: "Subscriptions to reports that this replica adds to.",
		}, func() float64 { return float64(r.count(func() int { return len(r.subscriptions) })) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_sums_pending", Help: "Agents whose reports wait to be written to subscriptions.",
		}, func() float64 { return float64(r.count(r.unwrittenLocked)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_sums_pending_bytes", Help: "Bytes that these take in memory, without the batch that is being written.",
		}, func() float64 { return float64(r.count(func() int { return r.pendingBytes })) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_report_streams", Help: "Streams of subscriptions that go on.",
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
