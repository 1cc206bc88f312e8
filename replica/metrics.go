package replica

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

type metrics struct {
	errors  prometheus.Counter
	changes prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_replica_heartbeat_errors_total",
			Help: "Heartbeats to the database that failed.",
		}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_replica_lease_changes_total",
			Help: "Times that this replica took the lease or lost it.",
		}),
	}
	return m, ownmetrics.Register(reg, m.errors, m.changes)
}

// registerGauges registers the gauges of what the replica knows now.
func (r *Replicas) registerGauges(reg prometheus.Registerer) error {
	return ownmetrics.Register(reg,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replica_leads",
			Help: "1 while this replica has the lease on what exactly one serves.",
		}, func() float64 { return number(r.Leads()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replica_member",
			Help: "1 while the other replicas consider this one alive.",
		}, func() float64 { return number(r.Member()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replicas_live",
			Help: "Replicas that this one considers alive, itself included.",
		}, func() float64 { return float64(r.countLive()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replicas_sharing",
			Help: "Replicas that share what is not connected, as this one sees it, itself included.",
		}, func() float64 { return float64(len(r.Sharing())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replicas_gone",
			Help: "Replicas that ended without leaving, or are cut off from the database, until 20 lease durations later.",
		}, func() float64 { gone, _ := r.noted(); return float64(gone) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replica_clock_skew_seconds",
			Help: "By how much the clock of this replica is ahead of the database's, in seconds; below 0: behind.",
		}, func() float64 { _, skew := r.noted(); return skew.Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replica_strangers",
			Help: "Replicas that send messages but are not in the database: cut off from it, or of another deployment with the same id.",
		}, func() float64 { return float64(r.countStrangers()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_replica_config_differences",
			Help: "Tokens, limits and other options that this replica has otherwise than others that live.",
		}, func() float64 { return float64(r.countDifferences()) }),
	)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
