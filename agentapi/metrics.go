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

// Kinds of watches, as the gauge labels them.
const (
	watchMetadata = "metadata"
	watchAgents   = "agents"
	watchStats    = "stats"
)

// Reasons of refused states, as the counter labels them and as agents are told.
const (
	reasonUnknownState = "unknown_state"
	reasonInvalidField = "invalid_field"
)

// requestCounters are those of agents' requests by what they carry.
type requestCounters struct {
	stats, metadata, lifecycle, appHealth, network, goodbye prometheus.Counter
}

type metrics struct {
	panics          prometheus.Counter
	authFailures    *prometheus.CounterVec
	limited         *prometheus.CounterVec
	requests        requestCounters
	refusedStates   *prometheus.CounterVec
	sessionNames    prometheus.Counter
	watches         *prometheus.GaugeVec
	pushes          prometheus.Gauge
	refused         *prometheus.CounterVec
	watchErrors     prometheus.Counter
	oversizedPushes prometheus.Counter
	bytesRefused    *prometheus.CounterVec
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
	requests := vec("agentstatsd_agent_requests_total", "Requests of agents by what they carry, within a session and without.", "kind")
	m := &metrics{
		limited: vec("agentstatsd_grpc_limited_total", "Calls, messages and connections that were refused or ended by a limit.", "reason", limitedReasons...),
		requests: requestCounters{
			stats:     requests.WithLabelValues("stats"),
			metadata:  requests.WithLabelValues("metadata"),
			lifecycle: requests.WithLabelValues("lifecycle"),
			appHealth: requests.WithLabelValues("app_health"),
			network:   requests.WithLabelValues("network"),
			goodbye:   requests.WithLabelValues("goodbye"),
		},
		panics:          prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_panics_total", Help: "Panics of gRPC handlers."}),
		authFailures:    vec("agentstatsd_auth_failures_total", "gRPC calls that were not let in.", "reason", authMissing, authMalformed, authUnknown, authUnavailable, authForbidden),
		refusedStates:   vec("agentstatsd_state_refused_total", "Lifecycle states, healths of apps and networks refused.", "reason", reasonUnknownState, reasonInvalidField),
		sessionNames:    prometheus.NewCounter(prometheus.CounterOpts{Name: "coderd_agentstats_session_counts_overflow_total", Help: "Names in session_counts beyond the 64 of one report, which count as unknown."}),
		watches:         prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "agentstatsd_watches", Help: "Watches that go on, by what is watched."}, []string{"kind"}),
		pushes:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_pushes", Help: "Instances of coderd that push."}),
		refused:         vec("agentstatsd_streams_refused_total", "Streams refused because too many went on.", "kind", "watch", "sync", "push"),
		watchErrors:     prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_watch_read_errors_total", Help: "Reads for watches of metadata that failed and are tried again."}),
		bytesRefused:    vec("agentstatsd_coderd_memory_refused_total", "Messages of coderd refused, watches ended, and batches of reports that wait, as all calls of their kind have too much in memory.", "kind", bytesRegistrations, bytesPushes, bytesWatches, bytesReads, bytesBatches),
		oversizedPushes: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_push_oversized_total", Help: "Pushes ended as a snapshot was above the limit of bytes."}),
	}
	for _, kind := range []string{watchMetadata, watchAgents, watchStats} {
		m.watches.WithLabelValues(kind)
	}
	reg.MustRegister(m.panics, m.sessionNames, m.watches, m.pushes, m.watchErrors, m.oversizedPushes)
	return m
}
