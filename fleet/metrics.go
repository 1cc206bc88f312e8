package fleet

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/budget"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
	"github.com/coder/agentstatsd/fleet/internal/durations"
	"github.com/coder/agentstatsd/fleet/internal/metadatakeys"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

type metrics struct {
	agents, workspaces, bytes, sessions, statesPending prometheus.Gauge

	beyondLimit, registrations, refused, sessionsEnded, refusedKeys *prometheus.CounterVec
	limited, delayed, clampedTimes, writeErrors                     *prometheus.CounterVec

	statesUnserved, statesWritten, statesRejected     prometheus.Counter
	duplicates, summarized                            prometheus.Counter
	sessionsRefused, instancesDropped, lookupsRefused prometheus.Counter
	loadErrors, followErrors, outdated                prometheus.Counter
	notificationErrors, notificationsMalformed        prometheus.Counter

	collection prometheus.Histogram
	builds     *durations.Histogram
}

// registerLimits registers the limits of the registrations and of lookups.
func (f *Fleet) registerLimits(reg prometheus.Registerer) error {
	return ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("agents", f.opts.Load, func(o *Options) int { return o.MaxAgents }, ownmetrics.Value(f.metrics.agents)),
		ownmetrics.Of("registrations_bytes", f.opts.Load, func(o *Options) int64 { return o.MaxBytes }, ownmetrics.Value(f.metrics.bytes)),
		ownmetrics.Of("metadata_keys", f.opts.Load, func(o *Options) int { return o.MaxMetadataKeys }, nil),
		ownmetrics.Of("lookups", f.opts.Load, func(o *Options) int { return o.MaxLookups }, func() float64 {
			if f.peers == nil {
				return 0
			}
			return float64(len(f.peers.lookups))
		}),
	)
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		all = append(all, c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		all = append(all, g)
		return g
	}
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := ownmetrics.CounterVec(name, help, ownmetrics.Values(label, values...))
		all = append(all, v)
		return v
	}
	collection := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "coderd_metrics_collector_agents_execution_seconds",
		Help:    "Histogram for duration of agents metrics collection in seconds.",
		Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10, 30},
	})
	builds := durations.NewHistogram()
	all = append(all, collection, builds)
	ends := make([]string, 0, len(allEnds))
	for _, end := range allEnds {
		ends = append(ends, string(end))
	}
	m := &metrics{
		agents:                 gauge("agentstatsd_agents_registered", "Agents that are registered."),
		workspaces:             gauge("agentstatsd_workspaces_registered", "Workspaces that are registered, with or without agents."),
		bytes:                  gauge("agentstatsd_registrations_bytes", "Estimated memory of all registrations, in bytes."),
		beyondLimit:            vec("agentstatsd_registrations_beyond_limit_total", "Agents read from the database while the registrations exceeded a limit of this replica; they are served.", "limit", capacity.ReasonMaxAgents, capacity.ReasonMaxBytes),
		registrations:          vec("agentstatsd_registrations_total", "Registrations of agents by outcome.", "outcome", outcomeNew, outcomeChanged, outcomeUnchanged, outcomeSuperseded, outcomeStale, outcomeDeregistered, outcomeRefused),
		refused:                vec("agentstatsd_registration_changes_refused_total", "Refused changes of the registrations, by reason. Nothing of them takes effect.", "reason", refusedInvalid, capacity.ReasonMaxAgents, capacity.ReasonMaxBytes, refusedNeedsForce, refusedStore),
		statesUnserved:         counter("agentstatsd_states_unserved_total", "Times that a series of an agent's state was of a family that is not served, a fault of the service."),
		sessions:               gauge("agentstatsd_sessions", "Live sessions of agents."),
		sessionsEnded:          vec("agentstatsd_sessions_ended_total", "Ended sessions of agents, by end.", "end", ends...),
		duplicates:             counter("agentstatsd_duplicate_requests_total", "Requests ignored because their sequence was received before."),
		refusedKeys:            vec("agentstatsd_metadata_refused_keys_total", "Metadata entries refused because of their key.", "reason", metadatakeys.ReasonUndeclared, metadatakeys.ReasonTooMany),
		limited:                vec("agentstatsd_agents_limited_total", "Penalties of agents that exceeded a limit: they may open no session for a while.", "reason", budget.ReasonMessages, budget.ReasonBytes, budget.ReasonRefused),
		delayed:                vec("agentstatsd_agent_messages_delayed_total", "Messages that were delayed because their agent exceeded a rate.", "reason", budget.ReasonMessages, budget.ReasonBytes),
		sessionsRefused:        counter("agentstatsd_sessions_refused_total", "Sessions refused because of a penalty or a rate of their agent."),
		summarized:             counter("agentstatsd_refusals_summarized_total", "Refusals sent in a summary instead of by name, because too many waited for the agent."),
		instancesDropped:       counter("agentstatsd_instances_dropped_total", "Instances of agents dropped before their retention, because an agent had too many."),
		clampedTimes:           vec("agentstatsd_lifecycle_times_clamped_total", "Lifecycle states with an impossible time, which was replaced by the time of receipt.", "reason", agent.ClampedFuture, agent.ClampedBuild),
		statesPending:          gauge("agentstatsd_states_pending", "Agents with a state that waits to be written."),
		statesWritten:          counter("agentstatsd_states_written_total", "States of agents that were written."),
		statesRejected:         counter("agentstatsd_states_rejected_total", "States of agents that the database refused."),
		writeErrors:            vec("agentstatsd_fleet_write_errors_total", "Failed writes, by what was written. They are retried.", "what", "states", "sessions", "builds"),
		loadErrors:             counter("agentstatsd_registrations_load_errors_total", "Failed attempts to load the registrations."),
		followErrors:           counter("agentstatsd_fleet_follow_errors_total", "Failed reads of what other replicas wrote."),
		outdated:               counter("agentstatsd_registrations_outdated_total", "Changes of the registrations that were decided again, because another replica changed them first."),
		notificationErrors:     counter("agentstatsd_fleet_notification_errors_total", "Notifications of the fleet that could not be published."),
		notificationsMalformed: counter("agentstatsd_fleet_notifications_malformed_total", "Notifications of the fleet that could not be decoded."),
		lookupsRefused:         counter("agentstatsd_fleet_lookups_refused_total", "Lookups of unknown tokens and agents that were refused, because too many were waiting."),
		collection:             collection,
		builds:                 builds,
	}
	return m, ownmetrics.Register(reg, all...)
}
