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

// Senders of bytes, as the metrics label them.
const (
	senderAgent  = "agent"
	senderCoderd = "coderd"
)

// usualCodes are status codes that coderd, or the bridge itself, answers with. Others are
// counted once they are seen.
var usualCodes = []string{"101", "200", "400", "401", "403", "404", "429", "500", "502", "503"}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	senders := ownmetrics.Values("sender", senderAgent, senderCoderd)
	m := &metrics{
		connections: ownmetrics.GaugeVec("agentstatsd_bridge_connections", "Upgraded connections that are open, by kind: agent, or other, like those of log streamers and of DERP.",
			ownmetrics.Values("kind", kindAgent, kindOther)),
		handshakes: ownmetrics.CounterVec("agentstatsd_bridge_handshakes_total", "Requests of agents for a connection, by the status code that they were answered with.",
			ownmetrics.Values("code", usualCodes...)),
		requests: ownmetrics.CounterVec("agentstatsd_bridge_other_requests_total", "Requests for other paths, by the status code that they were answered with.",
			ownmetrics.Values("code", usualCodes...)),
		bytes: ownmetrics.CounterVec("agentstatsd_bridge_bytes_total", "Bytes that were passed on over upgraded connections, by sender.", senders),
		latency: ownmetrics.HistogramVec(prometheus.HistogramOpts{
			Name:    "agentstatsd_bridge_added_latency_seconds",
			Help:    "Time between reading bytes of an upgraded connection and having them written, by sender. It includes the time in which the receiver took none.",
			Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1, 5},
		}, senders),
		unreachable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_upstream_errors_total",
			Help: "Requests that coderd did not answer.",
		}),
		refused: ownmetrics.CounterVec("agentstatsd_bridge_connections_refused_total",
			"Connections beyond --max-agent-connections, by what became of them: answered 503, closed, or closed as idle to make room for another one.",
			ownmetrics.Values("outcome", refusedAnswered, refusedClosed, refusedIdle)),
	}
	m.fromAgent = direction{m.bytes.WithLabelValues(senderAgent), m.latency.WithLabelValues(senderAgent)}
	m.fromCoderd = direction{m.bytes.WithLabelValues(senderCoderd), m.latency.WithLabelValues(senderCoderd)}
	return m, ownmetrics.Register(reg, m.connections, m.handshakes, m.requests, m.bytes, m.latency, m.unreachable, m.refused)
}

// registerLimits registers the limit of what is served at once.
func (p *Proxy) registerLimits(reg prometheus.Registerer) error {
	limit := func() float64 { return float64(p.MaxConnections()) }
	return ownmetrics.RegisterLimits(reg, ownmetrics.Limit{What: "agent_connections", Limit: limit, Usage: func() float64 {
		p.conns.mu.Lock()
		defer p.conns.mu.Unlock()
		return float64(p.conns.serving)
	}})
}
