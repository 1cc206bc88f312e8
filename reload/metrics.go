package reload

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

type metrics struct {
	successful, time, hash prometheus.Gauge
	succeeded, failed      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	reloads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "agentstatsd_config_reloads_total", Help: "Reloads of the configuration, by outcome.",
	}, []string{"outcome"})
	m := &metrics{
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_config_last_reload_successful", Help: "Whether the last reload of the configuration, or the start, succeeded.",
		}),
		time: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_config_last_reload_success_timestamp_seconds", Help: "Unix time of the last reload that succeeded, or of the start.",
		}),
		hash: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_config_hash", Help: "Hash of the options in force, without the passwords in them.",
		}),
		succeeded: reloads.WithLabelValues("success"),
		failed:    reloads.WithLabelValues("failure"),
	}
	return m, ownmetrics.Register(reg, reloads, m.successful, m.time, m.hash)
}

// loaded records that the configuration with that hash is in force since now.
func (m *metrics) loaded(hash uint64, now time.Time) {
	m.successful.Set(1)
	m.time.Set(float64(now.UnixMilli()) / 1000)
	m.hash.Set(float64(hash))
}

func (m *metrics) failedOnce() {
	m.successful.Set(0)
	m.failed.Inc()
}
