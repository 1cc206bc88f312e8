package fleet

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/fleet/internal/budget"
)

type metrics struct {
	agents                 prometheus.Gauge
	workspaces             prometheus.Gauge
	bytes                  prometheus.Gauge
	beyondLimit            *prometheus.CounterVec
	registrations          *prometheus.CounterVec
	refused                *prometheus.CounterVec
	sessions               prometheus.Gauge
	sessionsEnded          *prometheus.CounterVec
	duplicates             prometheus.Counter
	refusedKeys            *prometheus.CounterVec
	summarized             prometheus.Counter
	limited                *prometheus.CounterVec
	delayed                *prometheus.CounterVec
	sessionsRefused        prometheus.Counter
	instancesDropped       prometheus.Counter
	clampedTimes           *prometheus.CounterVec
	statesPending          prometheus.Gauge
	statesWritten          prometheus.Counter
	statesRejected         prometheus.Counter
	writeErrors            *prometheus.CounterVec
	loadErrors             prometheus.Counter
	followErrors           prometheus.Counter
	outdated               prometheus.Counter
	notificationErrors     prometheus.Counter
	notificationsMalformed prometheus.Counter
	lookupsRefused         prometheus.Counter
	collection             prometheus.Histogram
	builds                 *buildDurations
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value)
		}
		reg.MustRegister(v)
		return v
	}
	collection := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "coderd_metrics_collector_agents_execution_seconds",
		Help:    "Histogram for duration of agents metrics collection in seconds.",
		Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10, 30},
	})
	reg.MustRegister(collection)
	ends := make([]string, 0, len(allEnds))
	for _, end := range allEnds {
		ends = append(ends, string(end))
	}
	return &metrics{
		agents:                 gauge("agentstatsd_agents_registered", "Agents that are registered."),
		workspaces:             gauge("agentstatsd_workspaces_registered", "Workspaces that are registered, with or without agents."),
		bytes:                  gauge("agentstatsd_registrations_bytes", "Bytes in memory of all registrations, as they are estimated."),
		beyondLimit:            vec("agentstatsd_registrations_beyond_limit_total", "Agents read from the database while there were more registrations than this replica would take in; they are served.", "limit", refusedMaxAgents, refusedMaxBytes),
		registrations:          vec("agentstatsd_registrations_total", "Registrations of agents by what they did.", "outcome", outcomeNew, outcomeChanged, outcomeUnchanged, outcomeSuperseded, outcomeStale, outcomeDeregistered),
		refused:                vec("agentstatsd_registration_changes_refused_total", "Changes of the registrations that were refused as a whole.", "reason", refusedInvalid, refusedMaxAgents, refusedMaxBytes, refusedNeedsForce, refusedStore),
		sessions:               gauge("agentstatsd_sessions", "Live sessions of agents."),
		sessionsEnded:          vec("agentstatsd_sessions_total", "Sessions of agents that ended, by how.", "end", ends...),
		duplicates:             counter("agentstatsd_duplicate_requests_total", "Requests ignored because their sequence was received before."),
		refusedKeys:            vec("agentstatsd_metadata_refused_keys_total", "Metadata entries refused because of their key.", "reason", ReasonUndeclaredKey, ReasonTooManyKeys),
		limited:                vec("agentstatsd_agents_limited_total", "Times that an agent was sent away for a while.", "reason", budget.ReasonMessages, budget.ReasonBytes, budget.ReasonRefused),
		delayed:                vec("agentstatsd_agent_messages_delayed_total", "Messages that waited as their agent sends faster than it may.", "reason", budget.ReasonMessages, budget.ReasonBytes),
		sessionsRefused:        counter("agentstatsd_sessions_refused_total", "Sessions refused as their agent must stay away for a while."),
		summarized:             counter("agentstatsd_refusals_summarized_total", "Refusals told in a summary instead of by name, as too many waited for the agent."),
		instancesDropped:       counter("agentstatsd_instances_dropped_total", "Instances of agents forgotten early, as an agent had too many."),
		clampedTimes:           vec("agentstatsd_lifecycle_times_clamped_total", "Lifecycle states whose time cannot be and was taken as that of their receipt.", "reason", clampedFuture, clampedBuild),
		statesPending:          gauge("agentstatsd_states_pending", "Agents whose state waits to be written."),
		statesWritten:          counter("agentstatsd_states_written_total", "States of agents that were written."),
		statesRejected:         counter("agentstatsd_states_rejected_total", "States of agents that the database refused."),
		writeErrors:            vec("agentstatsd_fleet_write_errors_total", "Writes that failed and are tried again.", "what", "states", "sessions", "builds"),
		loadErrors:             counter("agentstatsd_registrations_load_errors_total", "Attempts to load the registrations that failed."),
		followErrors:           counter("agentstatsd_fleet_follow_errors_total", "Looks for what other replicas wrote that failed."),
		outdated:               counter("agentstatsd_registrations_outdated_total", "Changes of the registrations that were decided on again, as another replica made one first."),
		notificationErrors:     counter("agentstatsd_fleet_news_errors_total", "News of the fleet that could not be published."),
		notificationsMalformed: counter("agentstatsd_fleet_news_malformed_total", "News of the fleet that could not be read."),
		lookupsRefused:         counter("agentstatsd_fleet_lookups_refused_total", "Tokens and agents unknown here that were not looked for, as too many others were."),
		collection:             collection,
		builds:                 newBuildDurations(reg),
	}
}
