package agentapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Reasons of refused states, as the counter labels them and refusals have them.
const (
	reasonUnknownState = "unknown_state"
	reasonInvalidField = "invalid_field"
)

// Reasons why sessions, or streams, that relay are refused or ended, as the counter
// labels them.
const (
	refusedStreams  = "streams"
	refusedSessions = "sessions"
	refusedAgentID  = "agent_id"
	refusedCredit   = "credit"
	refusedSlow     = "slow"
)

// requestCounters are those of agents' requests by what they carry.
type requestCounters struct {
	stats, metadata, lifecycle, appHealth, network, goodbye prometheus.Counter
}

type metrics struct {
	requests      requestCounters
	refusedStates *prometheus.CounterVec
	sessionNames  prometheus.Counter

	relayStreams    prometheus.Gauge
	relayedSessions prometheus.Gauge
	relayRefused    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "agentstatsd_agent_requests_total", Help: "Requests of agents, by what they carry.",
	}, []string{"kind"})
	m := &metrics{
		requests: requestCounters{
			stats:     requests.WithLabelValues("stats"),
			metadata:  requests.WithLabelValues("metadata"),
			lifecycle: requests.WithLabelValues("lifecycle"),
			appHealth: requests.WithLabelValues("app_health"),
			network:   requests.WithLabelValues("network"),
			goodbye:   requests.WithLabelValues("goodbye"),
		},
		refusedStates: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_state_refused_total", Help: "Lifecycle states, healths of apps and networks refused."}, []string{"reason"}),
		sessionNames:  prometheus.NewCounter(prometheus.CounterOpts{Name: "coderd_agentstats_session_counts_overflow_total", Help: "Names in session_counts beyond the 64 of one report, which count as unknown."}),

		relayStreams:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_relay_streams", Help: "Streams of coderd that relay for agents."}),
		relayedSessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_relayed_sessions", Help: "Sessions of agents on streams that relay."}),
		relayRefused:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_relay_refused_total", Help: "Streams that relay, and sessions on them, that were refused or ended by a limit."}, []string{"reason"}),
	}
	for _, reason := range []string{refusedStreams, refusedSessions, refusedAgentID, refusedCredit, refusedSlow} {
		m.relayRefused.WithLabelValues(reason)
	}
	for _, reason := range []string{reasonUnknownState, reasonInvalidField} {
		m.refusedStates.WithLabelValues(reason)
	}
	return m, ownmetrics.Register(reg, requests, m.refusedStates, m.sessionNames, m.relayStreams, m.relayedSessions, m.relayRefused)
}
