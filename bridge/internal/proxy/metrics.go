package proxy

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

type metrics struct {
	connections *prometheus.GaugeVec
	handshakes  *prometheus.CounterVec
	requests    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	latency     *prometheus.HistogramVec
	unreachable prometheus.Counter
	refused     *prometheus.CounterVec

	// Of the hot path.

	fromAgent, fromCoderd direction
}

// direction has the metrics of the bytes that one side sent.
type direction struct {
	bytes   prometheus.Counter
	latency prometheus.Observer
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "agentstatsd_bridge_connections",
			Help: "Upgraded connections that are open, by kind: agent, or other, like those of log streamers and of DERP.",
		}, []string{"kind"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_handshakes_total",
			Help: "Requests of agents for a connection, by the status code that they were answered with.",
		}, []string{"code"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_other_requests_total",
			Help: "Requests for other paths, by the status code that they were answered with.",
		}, []string{"code"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_bytes_total",
			Help: "Bytes that were passed on over upgraded connections, by sender.",
		}, []string{"sender"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "agentstatsd_bridge_added_latency_seconds",
			Help:    "Time between reading bytes of an upgraded connection and having them written, by sender. It includes the time in which the receiver took none.",
			Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1, 5},
		}, []string{"sender"}),
		unreachable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_upstream_errors_total",
			Help: "Requests that coderd did not answer.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_connections_refused_total",
			Help: "Connections beyond --max-agent-connections, by what became of them: answered 503, closed, or closed as idle to make room for another one.",
		}, []string{"outcome"}),
	}
	m.fromAgent = direction{m.bytes.WithLabelValues("agent"), m.latency.WithLabelValues("agent")}
	m.fromCoderd = direction{m.bytes.WithLabelValues("coderd"), m.latency.WithLabelValues("coderd")}
	for _, kind := range []string{kindAgent, kindOther} {
		m.connections.WithLabelValues(kind)
	}
	for _, outcome := range []string{refusedAnswered, refusedClosed, refusedIdle} {
		m.refused.WithLabelValues(outcome)
	}
	return m, ownmetrics.Register(reg, m.connections, m.handshakes, m.requests, m.bytes, m.latency, m.unreachable, m.refused)
}
