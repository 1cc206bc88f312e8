package agentapi

import "github.com/prometheus/client_golang/prometheus"

// Reasons of failed authentications, as the counter labels them.
const (
	authMissing     = "missing"
	authMalformed   = "malformed"
	authUnknown     = "unknown"
	authUnavailable = "unavailable"
	authForbidden   = "forbidden"
)

// Reasons of refused states, as the counter labels them and as agents are told.
const (
	reasonUnknownState = "unknown_state"
	reasonInvalidField = "invalid_field"
)

type metrics struct {
	panics        prometheus.Counter
	authFailures  *prometheus.CounterVec
	requests      *prometheus.CounterVec
	refusedStates *prometheus.CounterVec
	sessionNames  prometheus.Counter
	watches       prometheus.Gauge
	refused       *prometheus.CounterVec
	watchErrors   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value)
		}
		reg.MustRegister(v)
		return v
	}
	m := &metrics{
		panics:        prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_panics_total", Help: "Panics of gRPC handlers."}),
		authFailures:  vec("agentstatsd_auth_failures_total", "gRPC calls that were not let in.", "reason", authMissing, authMalformed, authUnknown, authUnavailable, authForbidden),
		requests:      vec("agentstatsd_agent_requests_total", "Requests of agents by what they carry, within a session and without.", "kind", "stats", "metadata", "lifecycle", "app_health", "network", "goodbye"),
		refusedStates: vec("agentstatsd_state_refused_total", "Lifecycle states, healths of apps and networks refused.", "reason", reasonUnknownState, reasonInvalidField),
		sessionNames:  prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_session_names_overflow_total", Help: "Names of session counts beyond those looked at in one report."}),
		watches:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_watches", Help: "Watches of metadata that go on."}),
		refused:       vec("agentstatsd_streams_refused_total", "Streams refused because too many went on.", "kind", "watch", "sync"),
		watchErrors:   prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_watch_read_errors_total", Help: "Reads for watches of metadata that failed and are tried again."}),
	}
	reg.MustRegister(m.panics, m.sessionNames, m.watches, m.watchErrors)
	return m
}
