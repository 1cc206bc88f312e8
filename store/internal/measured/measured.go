// Package measured has the metrics of a store: the time of its calls, the connections to
// the database, and the rows that cannot be decoded.
package measured

import (
	"database/sql"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Calls are what a store does in one call, in the words of its errors.
var Calls = []string{
	"acquire tasks", "add reports", "change registrations", "confirm subscriptions", "count sums of reports", "deliver reports",
	"exchange status", "expire subscriptions", "fold pushes", "forget writers of reports", "look for sums of reports", "note gone replicas", "open subscription",
	"ping database", "read clock", "read deployment", "read lease", "read metadata", "read metadata keys", "read pushes",
	"read registrations", "read removals", "read sessions", "read states", "read subscriptions", "read versions of pushes",
	"record heartbeat", "record heartbeat of a report writer", "record observed builds", "release subscription",
	"remove replicas", "remove sums of reports", "remove writer of reports", "save interval factor", "save push",
	"save sessions", "save states", "start subscription", "upsert metadata",
}

// Causes are why calls fail that the database, or the way to it, does not let through.
const (
	CauseConnections = "connections"
	CauseDiskFull    = "disk_full"
	CauseMoved       = "moved"
	CauseOther       = "other"
	CauseReadOnly    = "read_only"
	CauseRejected    = "rejected"
	CauseTimeout     = "timeout"
	CauseUnreachable = "unreachable"
)

// Metrics are those of one store.
type Metrics struct {
	// UndecodableRows are by their kind.
	UndecodableRows *prometheus.CounterVec
	// errors are by Causes.
	errors *prometheus.CounterVec

	// times are by the names of Calls.
	times map[string]prometheus.Observer
}

// New registers the metrics of a store with rows of those kinds.
func New(kinds []string, reg prometheus.Registerer) (*Metrics, error) {
	queries := make([]string, len(Calls))
	for i, doing := range Calls {
		queries[i] = strings.ReplaceAll(doing, " ", "_")
	}
	times := ownmetrics.HistogramVec(prometheus.HistogramOpts{
		Name: "agentstatsd_store_query_duration_seconds",
		Help: "Time of a call of the database, a transaction or a read, with the attempts that it takes, also if it fails.",
		// From a write to SQLite to the end of patience.
		Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10},
	}, ownmetrics.Values("query", queries...))
	m := &Metrics{
		UndecodableRows: ownmetrics.CounterVec("agentstatsd_store_undecodable_rows_total", "Rows of the database that are skipped as they cannot be decoded, each once.",
			ownmetrics.Values("kind", kinds...)),
		errors: ownmetrics.CounterVec("agentstatsd_store_errors_total", "Calls of the database that failed, with all their attempts, by cause.",
			ownmetrics.Values("cause", CauseConnections, CauseDiskFull, CauseMoved, CauseOther, CauseReadOnly, CauseRejected, CauseTimeout, CauseUnreachable)),
		times: make(map[string]prometheus.Observer, len(Calls)),
	}
	for i, doing := range Calls {
		m.times[doing] = times.WithLabelValues(queries[i])
	}
	return m, ownmetrics.Register(reg, m.UndecodableRows, m.errors, times)
}

// Time measures one of Calls until done is called. Others are not measured, and nothing is
// without Metrics.
func (m *Metrics) Time(doing string) (done func()) {
	if m == nil || m.times[doing] == nil {
		return func() {}
	}
	began := time.Now()
	return func() { m.times[doing].Observe(time.Since(began).Seconds()) }
}

// CountError counts a call that failed. Nothing is counted without Metrics.
func (m *Metrics) CountError(cause string) {
	if m != nil {
		m.errors.WithLabelValues(cause).Inc()
	}
}

// RegisterPool registers the numbers of a pool of connections.
func RegisterPool(reg prometheus.Registerer, name string, db *sql.DB) error {
	// Without the prefix they would be families that coderd pushes.
	return ownmetrics.Register(prometheus.WrapRegistererWithPrefix("agentstatsd_", reg), collectors.NewDBStatsCollector(db, name))
}

// RegisterConns registers the limit of connections to a server.
func RegisterConns(reg prometheus.Registerer, limit int, db *sql.DB) error {
	return ownmetrics.RegisterLimits(reg, ownmetrics.Fixed("database_conns", limit, func() float64 { return float64(db.Stats().InUse) }))
}
