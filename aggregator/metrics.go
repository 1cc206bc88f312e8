package aggregator

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// ownMetrics are what the aggregator says of itself.
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

func newOwnMetrics(reg prometheus.Registerer, a *Aggregator) (*ownMetrics, error) {
	m := &ownMetrics{
		reports: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_reports_total",
			Help: "Reports of stats that were taken in.",
		}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_reports_ignored_total",
			Help: "Reports of stats that came from a session that was not the agent's open one.",
		}),
		samples: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_samples_total",
			Help: "Forwarded samples that were taken in.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_samples_refused_total",
			Help: "Samples, and fields of stats, that were refused, by reason.",
		}, []string{"reason"}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_series_expired_total",
			Help: "Series that were taken away because they were not reported for the TTL.",
		}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_family_type_conflicts_total",
			Help: "How often agents came to disagree on the type of a family, which has the type that most of them say.",
		}),
		typeChanges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_family_type_changes_total",
			Help: "How often a family got another type, as most agents said so. Its series of the type before went.",
		}),
		replaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_series_replaced_total",
			Help: "Series that were taken away before the TTL, as new ones of the same agent needed their place.",
		}),
	}
	omitted := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "agentstatsd_group_values_omitted_total",
		Help: "Reported values that were left out of the group that they belong to, by reason.",
	}, []string{"reason"})
	for o, reason := range omissionReasons {
		if reason != "" {
			m.omitted[o] = omitted.WithLabelValues(reason)
		}
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.reports, m.ignored, m.samples, m.refused, m.expired, m.replaced, m.conflicts, m.typeChanges, omitted,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_series",
			Help: "Series of agents that are held, stats gauges, states and groups included.",
		}, func() float64 { return float64(a.series.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_series_limit",
			Help: "Series of agents that may be held. What the service computes is never refused.",
		}, func() float64 { return float64(a.opts.MaxSeries) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_series_bytes",
			Help: "Bytes of the names and labels of the series that agents forward, and of their groups.",
		}, func() float64 { return float64(a.seriesBytes.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_series_bytes_limit",
			Help: "Bytes that the names and labels of series may have.",
		}, func() float64 { return float64(a.opts.MaxSeriesBytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_families",
			Help: "Families of agents that are held.",
		}, func() float64 { return float64(a.families.count()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_hidden_families",
			Help: "Families of agents that are not served because coderd pushes one with which they collide.",
		}, func() float64 { return float64(a.hidden()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_shadowed_agents",
			Help: "Agents whose series are not served because a newer agent has the same labels.",
		}, func() float64 { return float64(a.shadowed.Load()) }),
	} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register the aggregator's metrics: %w", err)
	}
	return m, nil
}
