package coder

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Labels of requests that have no status of HTTP.
const (
	statusNone    = "none"     // no answer
	statusNoToken = "no_token" // not made
)

type metrics struct {
	requests *prometheus.CounterVec
	expiry   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_coder_requests_total",
			Help: "Requests of coderd's REST API by the status of the answer (none: no answer; no_token: not made, as the file has no token).",
		}, []string{"status"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_bridge_coder_token_expiry_timestamp_seconds",
			Help: "Unix time at which the API token expires; 0: not known.",
		}),
	}
	for _, status := range []string{"200", statusNone, statusNoToken} {
		m.requests.WithLabelValues(status)
	}
	return m, ownmetrics.Register(reg, m.requests, m.expiry)
}
