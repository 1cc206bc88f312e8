package pushed

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// Outcomes of a push, as labels.
const (
	outcomeStored      = "stored"
	outcomeDuplicate   = "duplicate"
	outcomeSuperseded  = "superseded"
	outcomeInvalid     = "invalid"
	outcomeNoRoom      = "no_room"
	outcomeUnavailable = "unavailable"
)

// Outcomes of a read of what other replicas stored, as labels.
const (
	followChanged   = "changed"
	followUnchanged = "unchanged"
	followFailed    = "failed"
)

// ownMetrics are the metrics of this package.
type ownMetrics struct {
	pushes  *prometheus.CounterVec
	refused *prometheus.CounterVec
	// refusedSeries and refusedValues are what is refused of families that are
	// served.
	refusedSeries, refusedValues *prometheus.CounterVec
	folded, forgotten            prometheus.Counter
	follows                      *prometheus.CounterVec
	rowsRead                     prometheus.Counter
	undecodable, omitted         prometheus.Counter
	outdated                     prometheus.Counter
	notificationErrors           prometheus.Counter
	renderErrors                 prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*ownMetrics, error) {
	m := &ownMetrics{
		pushes: ownmetrics.CounterVec("agentstatsd_pushes_total", "Snapshots that coderd instances pushed, by outcome.",
			ownmetrics.Values("outcome", outcomeStored, outcomeDuplicate, outcomeSuperseded, outcomeInvalid, outcomeNoRoom, outcomeUnavailable)),
		refused: ownmetrics.CounterVec("agentstatsd_pushed_families_refused_total", "Families of stored snapshots that were refused, by reason.",
			ownmetrics.Values("reason", family.Reasons[family.OfFamily]...)),
		refusedSeries: ownmetrics.CounterVec("agentstatsd_pushed_series_refused_total", "Series of stored snapshots that were refused, beside those of refused families, by reason.",
			ownmetrics.Values("reason", family.Reasons[family.OfSeries]...)),
		refusedValues: ownmetrics.CounterVec("agentstatsd_pushed_values_refused_total",
			"Exemplars, created timestamps and sums of stored snapshots that were left out, and gauges of them that count in no sum, maximum or minimum, once for each snapshot, by reason; their series are served.",
			ownmetrics.Values("reason", family.Reasons[family.OfValues]...)),
		folded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_push_instances_merged_total",
			Help: "Instances that were gone and whose counts were merged into totals.",
		}),
		forgotten: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_push_totals_series_forgotten_total",
			Help: "Series of the totals, of instances that are gone, that were forgotten to make room.",
		}),
		follows: ownmetrics.CounterVec("agentstatsd_push_follows_total", "Reads of what other replicas stored of pushes, by outcome.",
			ownmetrics.Values("outcome", followChanged, followUnchanged, followFailed)),
		rowsRead: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_push_rows_read_total",
			Help: "Rows that were read because another replica wrote them, or at the start.",
		}),
		undecodable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_push_rows_undecodable_total",
			Help: "Stored rows of pushes that could not be decoded, and were skipped.",
		}),
		omitted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_push_row_values_omitted_total",
			Help: "Counters and sums in stored rows of pushes that were left out when the row was read: they are no numbers, or beyond all that is measured.",
		}),
		outdated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pushes_outdated_total",
			Help: "How often a push, or a merge into totals, was decided again because another replica had written the same row.",
		}),
		notificationErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_push_notification_errors_total",
			Help: "Stored pushes, and merges into totals, of which the other replicas could not be notified: they read them later.",
		}),
		renderErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pushed_family_render_errors_total",
			Help: "How often a merged family was left out because it could not be rendered.",
		}),
	}
	return m, ownmetrics.Register(reg, m.pushes, m.refused, m.refusedSeries, m.refusedValues, m.folded, m.forgotten,
		m.renderErrors, m.follows, m.rowsRead, m.undecodable, m.omitted, m.outdated, m.notificationErrors)
}

// registerGauges registers the gauges of what is stored and served now, and the limits.
func (f *Families) registerGauges(reg prometheus.Registerer) error {
	of := func(value func(*view) int) func() float64 {
		return func() float64 { return float64(value(f.view.Load())) }
	}
	gauge := func(name, help string, value func(*view) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, of(value))
	}
	err := ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("coderd_instances", f.opts.Load, func(o *Options) int { return o.MaxInstances }, of(func(v *view) int { return v.own })),
		ownmetrics.Of("pushed_series", f.opts.Load, func(o *Options) int { return o.MaxSeries }, of(func(v *view) int { return v.mostSeries })),
		ownmetrics.Of("pushed_series_total", f.opts.Load, func(o *Options) int { return o.MaxTotalSeries }, of(func(v *view) int { return v.live })),
		ownmetrics.Of("pushed_families", f.opts.Load, func(o *Options) int { return o.MaxFamilies }, of(func(v *view) int { return v.mostFamilies })),
		ownmetrics.Of("push_row_bytes", f.opts.Load, func(o *Options) int { return o.MaxRowBytes }, of(func(v *view) int { return v.mostRowBytes })),
		ownmetrics.Of("pushed_label_value_bytes", f.opts.Load, func(o *Options) int { return o.MaxLabelValueBytes }, nil),
		ownmetrics.Of("pushed_labels_bytes", f.opts.Load, func(o *Options) int { return o.MaxLabelsBytes }, nil),
	)
	if err != nil {
		return err
	}
	return ownmetrics.Register(reg,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_serves_pushed_families",
			Help: "1 while this replica is the one that serves what coderd instances pushed.",
		}, func() float64 {
			if f.serves() {
				return 1
			}
			return 0
		}),
		gauge("agentstatsd_passed_families", "Families of agents, or computed of them, that are served from pushes of coderd alone.",
			func(v *view) int { return len(v.passed) }),
		gauge("agentstatsd_push_instances", "Instances with a stored row, the totals included.",
			func(v *view) int { return v.instances }),
		gauge("agentstatsd_pushed_series", "Series that are kept of all instances, each bucket counted as one.",
			func(v *view) int { return v.series }),
		gauge("agentstatsd_push_rows_skipped", "Stored rows of pushes that are skipped, as they cannot be decoded.",
			func(v *view) int { return v.unreadable }),
		gauge("agentstatsd_push_row_bytes", "What is stored of all instances, in bytes.",
			func(v *view) int { return v.rowBytes }),
	)
}

func (m *ownMetrics) countRefused(refused []family.Refusals) {
	by := map[family.Scope]*prometheus.CounterVec{family.OfFamily: m.refused, family.OfSeries: m.refusedSeries, family.OfValues: m.refusedValues}
	for _, all := range refused {
		for _, r := range all {
			by[r.Scope].WithLabelValues(string(r.Reason)).Add(float64(r.Count))
		}
	}
}
