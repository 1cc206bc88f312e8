package pubsub

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// buckets go from 0.1 ms, a round trip on one machine, to 6.6 s, past the
// timeout, by a factor of 4.
var buckets = prometheus.ExponentialBuckets(0.0001, 4, 9)

type metrics struct {
	published         prometheus.Counter
	publishErrors     prometheus.Counter
	publishDuration   prometheus.Histogram
	deliveryLatency   prometheus.Histogram
	reconnects        prometheus.Counter
	overflows         prometheus.Counter
	droppedSubscriber prometheus.Counter
	droppedConnection prometheus.Counter
	subscribers       prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pubsub_published_messages_total",
			Help: "Messages published.",
		}),
		publishErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pubsub_publish_errors_total",
			Help: "Messages that could not be published, or may not have been.",
		}),
		publishDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "agentstatsd_pubsub_publish_duration_seconds",
			Help:    "Time that publishing a message took, also if it ended with an error.",
			Buckets: buckets,
		}),
		deliveryLatency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "agentstatsd_pubsub_delivery_latency_seconds",
			Help:    "Time from publishing a message until it arrived here, of messages of the engine to itself. None in memory.",
			Buckets: buckets,
		}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pubsub_reconnects_total",
			Help: "Times that the connection on which messages arrive was lost and made anew.",
		}),
		overflows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_pubsub_overflows_total",
			Help: "Times that a slow subscriber was notified to resynchronise, as its queue was full.",
		}),
		subscribers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_pubsub_subscribers",
			Help: "Subscriptions that exist now.",
		}),
	}
	dropped := ownmetrics.CounterVec("agentstatsd_pubsub_dropped_messages_total", "Messages that a subscriber did not get.",
		ownmetrics.Values("reason", "slow_subscriber", "slow_connection"))
	m.droppedSubscriber = dropped.WithLabelValues("slow_subscriber")
	m.droppedConnection = dropped.WithLabelValues("slow_connection")
	return m, ownmetrics.Register(reg, m.published, m.publishErrors, m.publishDuration, m.deliveryLatency, m.reconnects,
		m.overflows, dropped, m.subscribers)
}

// registerConnected registers the gauge of whether an engine is connected.
func registerConnected(reg prometheus.Registerer, engine Engine) error {
	return ownmetrics.Register(reg, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_pubsub_connected",
		Help: "1 while messages can arrive, otherwise 0.",
	}, func() float64 {
		if engine.Connected() != nil {
			return 0
		}
		return 1
	}))
}

// deploymentMetrics count messages that a deployment refused.
type deploymentMetrics struct{ foreign, malformed prometheus.Counter }

func newDeploymentMetrics(reg prometheus.Registerer) (*deploymentMetrics, error) {
	refused := ownmetrics.CounterVec("agentstatsd_pubsub_refused_messages_total",
		"Messages that arrived and were discarded: of another deployment, or without a sender's id.",
		ownmetrics.Values("reason", "other_deployment", "malformed"))
	m := &deploymentMetrics{foreign: refused.WithLabelValues("other_deployment"), malformed: refused.WithLabelValues("malformed")}
	return m, ownmetrics.Register(reg, refused)
}

// countPublish counts a publish that began at start and ended with err.
func (m *metrics) countPublish(start time.Time, err error) {
	m.publishDuration.Observe(time.Since(start).Seconds())
	if err != nil {
		m.publishErrors.Inc()
	} else {
		m.published.Inc()
	}
}
