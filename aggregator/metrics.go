package aggregator

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// ownMetrics are the aggregator's own metrics.
type ownMetrics struct {
	reports   prometheus.Counter
	ignored   prometheus.Counter
	samples   prometheus.Counter
	refused   *prometheus.CounterVec
	expired   prometheus.Counter
	replaced  prometheus.Counter
	conflicts prometheus.Counter
	// typeChanges counts families.
	typeChanges prometheus.Counter
	// omitted has a counter for each omission.
	omitted [omissions]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*ownMetrics, error) {
	m := &ownMetrics{
		reports: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_reports_total",
			Help: "Reports of stats that were stored.",
		}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_reports_ignored_total",
			Help: "Reports of stats that came from a session that was not the agent's open one.",
		}),
		samples: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_samples_total",
			Help: "Forwarded samples that were stored.",
		}),
		refused: ownmetrics.CounterVec("agentstatsd_samples_refused_total", "Samples, and fields of stats, that were refused, by reason.",
			ownmetrics.Values("reason", refusalReasons...)),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_series_expired_total",
			Help: "Series removed because they were not reported for the TTL.",
		}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_family_type_conflicts_total",
			Help: "How often agents began to disagree on the type of a family. It has the type that most of them send.",
		}),
		typeChanges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_family_type_changes_total",
			Help: "How often a family got another type because most agents send it, or coderd pushes it. Its series of the type before are removed.",
		}),
		replaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_series_replaced_total",
			Help: "Series removed before the TTL to make room for new ones of the same agent.",
		}),
	}
	omitted := ownmetrics.CounterVec("agentstatsd_group_values_omitted_total", "Reported values that their group left out, by reason.",
		ownmetrics.Values("reason", omissionReasons[included+1:]...))
	for o, reason := range omissionReasons {
		if reason != "" {
			m.omitted[o] = omitted.WithLabelValues(reason)
		}
	}
	return m, ownmetrics.Register(reg, m.reports, m.ignored, m.samples, m.refused, m.expired, m.replaced, m.conflicts,
		m.typeChanges, omitted)
}

// registerGauges registers the gauges of what the aggregator has now, and its limits.
func (a *Aggregator) registerGauges(reg prometheus.Registerer) error {
	if err := ownmetrics.RegisterLimits(reg, a.limits()...); err != nil {
		return err
	}
	return ownmetrics.Register(reg,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_series",
			Help: "Series of agents in memory, stats gauges, states and groups included.",
		}, func() float64 { return float64(a.series.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_series_bytes",
			Help: "Bytes of the names and labels of the series that agents forward, and of their groups.",
		}, func() float64 { return float64(a.seriesBytes.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_families",
			Help: "Families of agents in memory.",
		}, func() float64 { return float64(a.families.count()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_hidden_families",
			Help: "Families of which agents send samples that are refused, because they cannot be served beside one that coderd pushes.",
		}, func() float64 { return float64(a.families.contradicted()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_agents_overdue",
			Help: "Agents with a session and without a report for three quarters of the TTL of series, which is longer than lengthened intervals.",
		}, func() float64 { return float64(a.countOverdue(time.Now())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_hidden_agents",
			Help: "Agents hidden by a newer agent with the same labels: their series are not served.",
		}, func() float64 { return float64(a.hiddenAgents.Load()) }),
	)
}
