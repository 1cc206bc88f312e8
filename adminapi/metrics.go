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

// Outcomes of explanations.
const (
	outcomeServed    = "served"
	outcomeExplained = "explained"
	outcomeRefused   = "refused"
	outcomeFailed    = "failed"
)

type metrics struct {
	exchangeErrors prometheus.Counter
	rowsLeftOut    prometheus.Counter
	refused        *prometheus.CounterVec
	explanations   *prometheus.CounterVec
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
		explanations: ownmetrics.CounterVec("agentstatsd_explanations_total",
			"Questions of operators why a series is missing, by outcome (served: it is not; explained; refused: too many at once, or no selector; failed).",
			ownmetrics.Values("outcome", outcomeServed, outcomeExplained, outcomeRefused, outcomeFailed)),
	}
	return m, ownmetrics.Register(reg, m.exchangeErrors, m.rowsLeftOut, m.refused, m.explanations)
}
