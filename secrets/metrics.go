package secrets

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	descExpiry = prometheus.NewDesc("agentstatsd_tls_certificate_expiry_timestamp_seconds",
		"Unix time at which a certificate of a listener expires (server: its own; client_ca: the one for clients that is valid the longest).",
		[]string{"certificate"}, nil)
	descRefused = prometheus.NewDesc("agentstatsd_tls_files_refused_total",
		"Changes of the files of a listener that could not be used: those before are.", nil, nil)
)

// collector collects what is to be known of the files of a listener.
type collector[T any] struct{ watched *Watched[T] }

// Collector returns the metrics of the value: when its certificates expire, and how many
// changes were refused. It is to be labeled with the listener.
func (w *Watched[T]) Collector() prometheus.Collector { return collector[T]{w} }

// Describe implements prometheus.Collector.
func (collector[T]) Describe(descs chan<- *prometheus.Desc) {
	descs <- descExpiry
	descs <- descRefused
}

// Collect implements prometheus.Collector.
func (c collector[T]) Collect(metrics chan<- prometheus.Metric) {
	for _, cert := range c.watched.Certificates().all() {
		metrics <- prometheus.MustNewConstMetric(descExpiry, prometheus.GaugeValue, float64(cert.cert.NotAfter.Unix()), cert.kind)
	}
	metrics <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(c.watched.Refused()))
}
