package handshake

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Reasons of refusals, as the counter labels them.
const (
	refusedWait    = "wait"    // there was no room within the timeout
	refusedTimeout = "timeout" // the client did not end it within the timeout
	refusedEvicted = "evicted" // it was slow, and others waited
)

type metrics struct {
	refused *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_tls_handshakes_refused_total",
			Help: "TLS handshakes ended by a limit (wait: no room in time; timeout: too slow; evicted: slow while others waited).",
		}, []string{"reason"}),
	}
	for _, reason := range []string{refusedWait, refusedTimeout, refusedEvicted} {
		m.refused.WithLabelValues(reason)
	}
	return m, ownmetrics.Register(reg, m.refused)
}

// registerGauges registers the gauge of the handshakes that go on now.
func (g *Gate) registerGauges(reg prometheus.Registerer) error {
	return ownmetrics.Register(reg, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_tls_handshakes", Help: "TLS handshakes that go on.",
	}, func() float64 {
		g.mu.Lock()
		defer g.mu.Unlock()
		return float64(len(g.running))
	}))
}
