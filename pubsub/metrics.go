package pubsub

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

// newMetrics registers the metrics of an engine; connected is its Connected.
func newMetrics(reg prometheus.Registerer, connected func() error) (*metrics, error) {
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
			Help: "Times that a slow subscriber was told to resynchronise, as its queue was full.",
		}),
		subscribers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_pubsub_subscribers",
			Help: "Subscriptions that exist now.",
		}),
	}
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "agentstatsd_pubsub_dropped_messages_total",
		Help: "Messages that a subscriber did not get.",
	}, []string{"reason"})
	m.droppedSubscriber = dropped.WithLabelValues("slow_subscriber")
	m.droppedConnection = dropped.WithLabelValues("slow_connection")
	up := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_pubsub_connected",
		Help: "1 while messages can arrive, otherwise 0.",
	}, func() float64 {
		if connected() != nil {
			return 0
		}
		return 1
	})
	return m, errors.Join(
		reg.Register(m.published), reg.Register(m.publishErrors), reg.Register(m.publishDuration),
		reg.Register(m.deliveryLatency), reg.Register(m.reconnects), reg.Register(up),
		reg.Register(m.overflows), reg.Register(dropped), reg.Register(m.subscribers),
	)
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
