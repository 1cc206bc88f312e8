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
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_panics_total", Help: "Panics of gRPC handlers."}),
		authFailures: ownmetrics.CounterVec("agentstatsd_auth_failures_total", "gRPC calls that were not let in.",
			ownmetrics.Values("reason", authMissing, authMalformed, authUnknown, authUnavailable, authForbidden)),
		limited: ownmetrics.CounterVec("agentstatsd_grpc_limited_total", "Calls, messages and connections that were refused or ended by a limit.",
			ownmetrics.Values("reason", limitedReasons...)),
	}
	return m, ownmetrics.Register(reg, m.panics, m.authFailures, m.limited)
}

// limits returns the server's limits.
func (s *Server) limits() []ownmetrics.Limit {
	o := &s.opts
	return []ownmetrics.Limit{
		ownmetrics.Fixed("grpc_connections", o.MaxConnections, ownmetrics.Count(s.connections.count)),
		ownmetrics.Fixed("grpc_unauthenticated_connections", o.MaxStrangersPerAddress, ownmetrics.Count(s.connections.mostStrangers)),
		ownmetrics.Fixed("grpc_unauthenticated_calls", o.MaxStrangerCalls, ownmetrics.Count(s.connections.mostCalls)),
		ownmetrics.Fixed("grpc_open_calls", o.MaxOpenCalls, ownmetrics.Count(s.openCalls.count)),
		ownmetrics.Fixed("grpc_streams", o.MaxStreams, nil),
		ownmetrics.Fixed("coderd_calls", o.MaxCoderdCalls, func() float64 { return float64(len(s.coderdCalls)) }),
		ownmetrics.Fixed("streams_per_agent", o.MaxStreamsPerAgent, ownmetrics.Count(s.agentStreams.most)),
		ownmetrics.Fixed("message_bytes", o.MaxMessageBytes, nil),
		ownmetrics.Fixed("agent_message_bytes", o.MaxAgentMessageBytes, nil),
		ownmetrics.Fixed("receiving_bytes", o.MaxReceivingBytes, ownmetrics.Count(func() (used int) {
			for _, r := range s.receiving {
				used += r.inUse()
			}
			return used
		})),
	}
}

// registerGauges registers the gauges of what the server has now, and its limits.
func (s *Server) registerGauges(reg prometheus.Registerer) error {
	if err := ownmetrics.RegisterLimits(reg, s.limits()...); err != nil {
		return err
	}
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
