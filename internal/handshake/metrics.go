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
	refused, failed *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refused: ownmetrics.CounterVec("agentstatsd_tls_handshakes_refused_total",
			"TLS handshakes ended by a limit (wait: no room in time; timeout: too slow; evicted: slow while others waited).",
			ownmetrics.Values("reason", refusedWait, refusedTimeout, refusedEvicted)),
		failed: ownmetrics.CounterVec("agentstatsd_tls_handshakes_failed_total",
			"TLS handshakes that failed (closed: the client closed the connection; limit: the service did, for a limit or a time;"+
				" not_tls: the client does not speak TLS; rejected: the client refused, as a rule the certificate;"+
				" certificate: the client's is refused, or it has none; unsupported: no version, cipher or protocol in common).",
			ownmetrics.Values("reason", failureReasons...)),
	}
	return m, ownmetrics.Register(reg, m.refused, m.failed)
}

// registerLimits registers the limits of the listener of that name.
func (g *Gate) registerLimits(listener string, reg prometheus.Registerer) error {
	return ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("tls_handshakes/"+listener, g.inForce, func(o *Options) int { return o.Max }, func() float64 {
			g.mu.Lock()
			defer g.mu.Unlock()
			return float64(len(g.running))
		}),
		ownmetrics.Of("tls_handshakes_per_address/"+listener, g.inForce, func(o *Options) int { return o.MaxPerAddress }, func() float64 {
			g.mu.Lock()
			defer g.mu.Unlock()
			most := 0
			for _, n := range g.addresses {
				most = max(most, n)
			}
			return float64(most)
		}),
	)
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
