package adminapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Why a status of another replica is not shown.
const (
	refusedBytes       = "bytes"
	refusedReplicas    = "replicas"
	refusedUndecodable = "undecodable"
)

type metrics struct {
	exchangeErrors prometheus.Counter
	rowsLeftOut    prometheus.Counter
	refused        *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		exchangeErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_status_exchange_errors_total",
			Help: "Attempts of this replica to store its status, and to read those of others, that failed.",
		}),
		rowsLeftOut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_status_rows_left_out_total",
			Help: "Rows left out of statuses of this replica, as they had more than 32 KiB.",
		}),
		refused: ownmetrics.CounterVec("agentstatsd_statuses_refused_total",
			"Statuses of other replicas that are not shown, each time that they are read (bytes: above 32 KiB; replicas: of more than 100 replicas; undecodable: by a version that differs, or damaged).",
			ownmetrics.Values("reason", refusedBytes, refusedReplicas, refusedUndecodable)),
	}
	return m, ownmetrics.Register(reg, m.exchangeErrors, m.rowsLeftOut, m.refused)
}
