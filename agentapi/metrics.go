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
	watchActivity = "activity"
	watchAgents   = "agents"
	watchStats    = "stats"
)

// Reasons why a watch of stats without a stream ended, as the counter labels
// them.
const (
	expiredRetention = "retention"
	expiredLimit     = "limit"
)

// Parcels of reports between replicas, errors of them, what reports were dropped
// for and what was not taken up, as the counters label them.
const (
	parcelSent     = "sent"
	parcelResent   = "resent"
	parcelTaken    = "taken"
	parcelRepeated = "repeated"

	relayPublish   = "publish"
	relayMalformed = "malformed"

	droppedSilent  = "silent"
	droppedEnded   = "ended"
	droppedUnknown = "unknown"
	droppedLimit   = "limit"

	refusedReplica = "replica"
	refusedName    = "name"
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
	watchDropped    prometheus.Counter
	parked          prometheus.Gauge
	parkedExpired   *prometheus.CounterVec
	oversizedPushes prometheus.Counter
	bytesRefused    *prometheus.CounterVec

	moved, unsettled prometheus.Counter
	relayReplicas    prometheus.Gauge
	relayNames       prometheus.Counter
	relayParcels     *prometheus.CounterVec
	relayErrors      *prometheus.CounterVec
	relayDropped     *prometheus.CounterVec
	relayRefused     *prometheus.CounterVec
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
		watchDropped:    prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_watch_dropped_total", Help: "Reports that a watcher is not told of, as it reads too slowly and too much waits for it."}),
		parked:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_stats_watches_parked", Help: "Watches of stats that gather for a watcher who is away."}),
		parkedExpired:   vec("agentstatsd_stats_watches_expired_total", "Watches of stats that ended as the watcher stayed away, with what they gathered.", "reason", expiredRetention, expiredLimit),
		bytesRefused:    vec("agentstatsd_coderd_memory_refused_total", "Messages of coderd refused as all calls of their kind have too much in memory.", "kind", bytesRegistrations, bytesPushes),
		oversizedPushes: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_push_oversized_total", Help: "Pushes ended as a snapshot was above the limit of bytes."}),

		moved:         prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_stats_watches_moved_total", Help: "Watches of stats that came to this replica from another one."}),
		unsettled:     prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_stats_watches_unsettled_total", Help: "Watches of stats that came from a replica which does not answer: what it told last may be told again."}),
		relayReplicas: prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_relay_replicas", Help: "Other replicas that reports are relayed to or came from."}),
		relayNames:    prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_relay_names_dropped_total", Help: "Names of sessions and protocols left out of reports that are too large for a message to another replica."}),
		relayParcels:  vec("agentstatsd_relay_parcels_total", "Parcels of reports between replicas.", "kind", parcelSent, parcelResent, parcelTaken, parcelRepeated),
		relayErrors:   vec("agentstatsd_relay_errors_total", "Messages between replicas that were not sent, or not understood.", "reason", relayPublish, relayMalformed),
		relayDropped:  vec("agentstatsd_relay_dropped_total", "Reports that a watcher on another replica is not told of.", "reason", droppedSilent, droppedEnded, droppedUnknown, droppedLimit),
		relayRefused:  vec("agentstatsd_relay_refused_total", "Replicas forgotten and names of watches not taken up, as there are too many.", "kind", refusedReplica, refusedName),
	}
	for _, kind := range []string{watchMetadata, watchActivity, watchAgents, watchStats} {
		m.watches.WithLabelValues(kind)
	}
	reg.MustRegister(m.panics, m.sessionNames, m.watches, m.pushes, m.watchErrors, m.watchDropped, m.parked, m.oversizedPushes,
		m.moved, m.unsettled, m.relayReplicas, m.relayNames)
	return m
}
