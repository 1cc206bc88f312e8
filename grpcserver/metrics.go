package grpcserver

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Reasons of failed authentications, as the counter labels them.
const (
	authMissing     = "missing"
	authMalformed   = "malformed"
	authUnknown     = "unknown"
	authUnavailable = "unavailable"
	authForbidden   = "forbidden"
)

type metrics struct {
	panics       prometheus.Counter
	authFailures *prometheus.CounterVec
	limited      *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		panics:       prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_panics_total", Help: "Panics of gRPC handlers."}),
		authFailures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_auth_failures_total", Help: "gRPC calls that were not let in."}, []string{"reason"}),
		limited:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_grpc_limited_total", Help: "Calls, messages and connections that were refused or ended by a limit."}, []string{"reason"}),
	}
	for _, reason := range []string{authMissing, authMalformed, authUnknown, authUnavailable, authForbidden} {
		m.authFailures.WithLabelValues(reason)
	}
	for _, reason := range limitedReasons {
		m.limited.WithLabelValues(reason)
	}
	return m, ownmetrics.Register(reg, m.panics, m.authFailures, m.limited)
}

// registerGauges registers the gauges of what the server has now.
func (s *Server) registerGauges(reg prometheus.Registerer) error {
	gauges := []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_grpc_connections", Help: "Connections of the gRPC listener.",
	}, func() float64 { return float64(s.connections.count()) })}
	for role, r := range s.receiving {
		gauges = append(gauges, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_grpc_receiving_bytes", Help: "Bytes of messages above 64 KiB that are being received, or have room for it.",
			ConstLabels: prometheus.Labels{"role": role.String()},
		}, func() float64 { return float64(r.inUse()) }))
	}
	return ownmetrics.Register(reg, gauges...)
}
