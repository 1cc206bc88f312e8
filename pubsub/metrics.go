package pubsub

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	published   prometheus.Counter
	overflows   prometheus.Counter
	dropped     prometheus.Counter
	subscribers prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pubsub_published_messages_total",
			Help: "Messages published.",
		}),
		overflows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pubsub_overflows_total",
			Help: "Times that a slow subscriber was told to resynchronise, as its queue was full.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name:        "agentstatsd_pubsub_dropped_messages_total",
			Help:        "Messages that a subscriber did not get.",
			ConstLabels: prometheus.Labels{"reason": "slow_subscriber"},
		}),
		subscribers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_pubsub_subscribers",
			Help: "Subscriptions that exist now.",
		}),
	}
	return m, errors.Join(
		reg.Register(m.published), reg.Register(m.overflows), reg.Register(m.dropped), reg.Register(m.subscribers),
	)
}
