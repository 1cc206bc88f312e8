package targets

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// outcome is what became of a scrape, as the counter labels it.
type outcome string

const (
	outcomePushed      outcome = "pushed"
	outcomeUnreachable outcome = "unreachable"
	outcomeTimeout     outcome = "timeout"
	outcomeStatus      outcome = "status"
	outcomeContentType outcome = "content_type"
	outcomeTooLarge    outcome = "too_large"
	outcomeMalformed   outcome = "malformed"
	outcomePushFailed  outcome = "push_failed"
	// outcomeSuperseded is that of a scrape when the service had a newer one, or one of
	// shortly before, of another bridge.
	outcomeSuperseded outcome = "superseded"
)

var outcomes = []outcome{
	outcomePushed, outcomeUnreachable, outcomeTimeout, outcomeStatus, outcomeContentType, outcomeTooLarge,
	outcomeMalformed, outcomePushFailed, outcomeSuperseded,
}

// Reasons for which a family is not pushed. Those for which the service refuses one are
// beside them.
const (
	reasonMalformed   = "malformed"
	reasonMessageSize = "message_size"
	reasonTooMany     = "too_many_families"
	reasonForwarded   = "forwarded_series"
	reasonOwned       = "owned_by_service"
)

// Outcomes of lookups.
const (
	lookupOK      = "ok"
	lookupFailed  = "failed"
	lookupTooMany = "too_many"
)

type metrics struct {
	scrapes          *prometheus.CounterVec
	samples, scraped *prometheus.GaugeVec
	leftOut, lookups *prometheus.CounterVec
	targets, standby prometheus.Gauge
}

// newMetrics registers the limits, too.
func newMetrics(opts *Options, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		// A target has its series once it is known: see add.
		scrapes: ownmetrics.CounterVec("agentstatsd_bridge_scrapes_total",
			"Scrapes of coderd by target and outcome (pushed: the service has it; superseded: it had a newer one, of another bridge).",
			ownmetrics.Open("target"), ownmetrics.Values("outcome", outcomes...)),
		samples: ownmetrics.GaugeVec("agentstatsd_bridge_scrape_samples", "Samples of the newest scrape of a target, without what was left out.",
			ownmetrics.Open("target")),
		scraped: ownmetrics.GaugeVec("agentstatsd_bridge_last_scrape_timestamp_seconds", "Unix time of the newest scrape of a target that the service took in from this bridge; 0: none.",
			ownmetrics.Open("target")),
		leftOut: ownmetrics.CounterVec("agentstatsd_bridge_scrape_families_left_out_total",
			"Families of scrapes that are not served, or not with all series, by reason (the service's, malformed, message_size, too_many_families).",
			ownmetrics.Values("reason", reasonMalformed, reasonMessageSize, reasonTooMany, reasonForwarded, reasonOwned)),
		lookups: ownmetrics.CounterVec("agentstatsd_bridge_target_lookups_total",
			"Lookups of the names of targets by outcome (too_many: there are more addresses than targets are allowed).",
			ownmetrics.Values("outcome", lookupOK, lookupFailed, lookupTooMany)),
		targets: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_bridge_targets",
			Help: "Targets that are scraped.",
		}),
		standby: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_bridge_targets_standby",
			Help: "Targets that the service granted to another bridge, which scrapes them.",
		}),
	}
	err := ownmetrics.RegisterLimits(reg,
		ownmetrics.Fixed("targets", opts.MaxTargets, ownmetrics.Value(m.targets)),
		ownmetrics.Fixed("scrape_bytes", opts.MaxBodyBytes, nil),
	)
	if err != nil {
		return nil, err
	}
	return m, ownmetrics.Register(reg, m.scrapes, m.samples, m.scraped, m.leftOut, m.lookups, m.targets, m.standby)
}

// add adds the series of a target.
func (m *metrics) add(target string) {
	for _, o := range outcomes {
		m.scrapes.WithLabelValues(target, string(o))
	}
	m.scraped.WithLabelValues(target)
	m.samples.WithLabelValues(target)
	m.targets.Inc()
}

// remove removes the series of a target.
func (m *metrics) remove(target string) {
	labels := prometheus.Labels{"target": target}
	m.scrapes.DeletePartialMatch(labels)
	m.scraped.DeletePartialMatch(labels)
	m.samples.DeletePartialMatch(labels)
	m.targets.Dec()
}
