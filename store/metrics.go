package store

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

type metrics struct {
	undecodableRows *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		undecodableRows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "agentstatsd_store_undecodable_rows_total",
			Help: "Rows of the database that are skipped as they cannot be decoded, each once.",
		}, []string{"kind"}),
	}
	for _, kind := range kinds {
		m.undecodableRows.WithLabelValues(kind)
	}
	return m, ownmetrics.Register(reg, m.undecodableRows)
}
