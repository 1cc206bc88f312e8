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

// newMetrics registers the limit of requests, too.
func newMetrics(maxPerSecond func() float64, reg prometheus.Registerer) (*metrics, error) {
	perSecond := ownmetrics.Limit{What: "coder_requests_per_second", Limit: maxPerSecond}
	if err := ownmetrics.RegisterLimits(reg, perSecond); err != nil {
		return nil, err
	}
	m := &metrics{
		// Others are counted once they are seen.
		requests: ownmetrics.CounterVec("agentstatsd_bridge_coder_requests_total",
			"Requests of coderd's REST API by the status of the answer (none: no answer; no_token: not made, as the file has no token).",
			ownmetrics.Values("status", "200", "401", "403", "404", "429", "500", "502", "503", statusNone, statusNoToken)),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_bridge_coder_token_expiry_timestamp_seconds",
			Help: "Unix time at which the API token expires; 0: not known.",
		}),
	}
	return m, ownmetrics.Register(reg, m.requests, m.expiry)
}
