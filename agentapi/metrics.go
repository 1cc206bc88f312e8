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

// registerLimits registers the limits of relaying.
func (s *Service) registerLimits(reg prometheus.Registerer) error {
	return ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("relay_streams", s.opts.Load, func(o *inForce) int { return o.MaxRelayStreams }, ownmetrics.Count(s.relays.InUse)),
		ownmetrics.Of("relayed_sessions", s.opts.Load, func(o *inForce) int { return o.MaxRelayedSessions }, ownmetrics.Count(func() int {
			most := 0
			s.relaying.Range(func(key, _ any) bool {
				if r, ok := key.(*relay); ok {
					most = max(most, r.count())
				}
				return true
			})
			return most
		})),
	)
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	requests := ownmetrics.CounterVec("agentstatsd_agent_requests_total", "Requests of agents, by what they carry.",
		ownmetrics.Values("kind", "stats", "metadata", "lifecycle", "app_health", "network", "goodbye"))
	m := &metrics{
		requests: requestCounters{
			stats:     requests.WithLabelValues("stats"),
			metadata:  requests.WithLabelValues("metadata"),
			lifecycle: requests.WithLabelValues("lifecycle"),
			appHealth: requests.WithLabelValues("app_health"),
			network:   requests.WithLabelValues("network"),
			goodbye:   requests.WithLabelValues("goodbye"),
		},
		refusedStates: ownmetrics.CounterVec("agentstatsd_state_refused_total", "Lifecycle states, healths of apps and networks refused.",
			ownmetrics.Values("reason", reasonUnknownState, reasonInvalidField)),
		sessionNames: prometheus.NewCounter(prometheus.CounterOpts{Name: "coderd_agentstats_session_counts_overflow_total", Help: "Names in session_counts beyond the 64 of one report, which count as unknown."}),

		relayStreams:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_relay_streams", Help: "Streams of coderd that relay for agents."}),
		relayedSessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_relayed_sessions", Help: "Sessions of agents on streams that relay."}),
		relayRefused: ownmetrics.CounterVec("agentstatsd_relay_refused_total", "Streams that relay, and sessions on them, that were refused or ended by a limit.",
			ownmetrics.Values("reason", refusedStreams, refusedSessions, refusedAgentID, refusedCredit, refusedSlow)),
	}
	return m, ownmetrics.Register(reg, requests, m.refusedStates, m.sessionNames, m.relayStreams, m.relayedSessions, m.relayRefused)
}
