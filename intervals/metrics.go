package intervals

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Directions of steps, as the counter labels them.
const (
	stepUp   = "up"
	stepDown = "down"
)

type metrics struct {
	load  *prometheus.GaugeVec
	steps *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, factor func() float64) (*metrics, error) {
	m := &metrics{
		load: ownmetrics.GaugeVec("agentstatsd_load",
			"Load of this replica in the last 30 s as a share of its target: above 1 the intervals of agents are lengthened.",
			ownmetrics.Values("kind", kindCPU, kindPendingAge, kindFlush)),
		steps: ownmetrics.CounterVec("agentstatsd_interval_steps_total",
			"Steps by which this replica, as the leader, lengthened the intervals of agents (up) or shortened them (down).",
			ownmetrics.Values("direction", stepUp, stepDown)),
	}
	return m, ownmetrics.Register(reg, m.load, m.steps, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_interval_factor",
		Help: "Factor by which the report and metadata intervals of agents are multiplied, the same on all replicas.",
	}, factor))
}

func (m *metrics) setLoad(l agent.Load) {
	m.load.WithLabelValues(kindCPU).Set(l.CPU)
	m.load.WithLabelValues(kindPendingAge).Set(l.PendingAge)
	m.load.WithLabelValues(kindFlush).Set(l.Flush)
}
