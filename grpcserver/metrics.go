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
	tokenCalls   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_panics_total", Help: "Panics of gRPC handlers."}),
		authFailures: ownmetrics.CounterVec("agentstatsd_auth_failures_total", "gRPC calls that were not let in.",
			ownmetrics.Values("reason", authMissing, authMalformed, authUnknown, authUnavailable, authForbidden)),
		limited: ownmetrics.CounterVec("agentstatsd_grpc_limited_total", "Calls, messages and connections that were refused or ended by a limit.",
			ownmetrics.Values("reason", limitedReasons...)),
		tokenCalls: ownmetrics.CounterVec("agentstatsd_token_calls_total", "Calls with a token that is no agent's, by its role and its name in the file.",
			ownmetrics.Values("role", RoleCoderd.String(), rolePusher.String(), roleOperator.String()), ownmetrics.Open("token")),
	}
	return m, ownmetrics.Register(reg, m.panics, m.authFailures, m.limited, m.tokenCalls)
}

// countTokens makes the counters of tokens. Those of removed ones stay.
func (m *metrics) countTokens(t *Tokens) {
	for _, role := range tokenRoles {
		for _, token := range t.of(role) {
			m.tokenCalls.WithLabelValues(role.String(), token.Name)
		}
	}
}

// limits returns the server's limits.
func (s *Server) limits() []ownmetrics.Limit {
	return []ownmetrics.Limit{
		ownmetrics.Of("grpc_connections", s.opts.Load, func(o *Options) int { return o.MaxConnections }, ownmetrics.Count(s.connections.count)),
		ownmetrics.Of("grpc_unauthenticated_connections", s.opts.Load, func(o *Options) int { return o.MaxStrangersPerAddress }, ownmetrics.Count(s.connections.mostStrangers)),
		ownmetrics.Of("grpc_unauthenticated_calls", s.opts.Load, func(o *Options) int { return o.MaxStrangerCalls }, ownmetrics.Count(s.connections.mostCalls)),
		ownmetrics.Of("grpc_open_calls", s.opts.Load, func(o *Options) int { return o.MaxOpenCalls }, ownmetrics.Count(s.openCalls.count)),
		ownmetrics.Of("grpc_streams", s.opts.Load, func(o *Options) uint32 { return o.MaxStreams }, nil),
		ownmetrics.Of("coderd_calls", s.opts.Load, func(o *Options) int { return o.MaxCoderdCalls }, ownmetrics.Count(s.coderdCalls.InUse)),
		ownmetrics.Of("streams_per_agent", s.opts.Load, func(o *Options) int { return o.MaxStreamsPerAgent }, ownmetrics.Count(s.agentStreams.most)),
		ownmetrics.Of("message_bytes", s.opts.Load, func(o *Options) int { return o.MaxMessageBytes }, nil),
		ownmetrics.Of("agent_message_bytes", s.opts.Load, func(o *Options) int { return o.MaxAgentMessageBytes }, nil),
		ownmetrics.Of("receiving_bytes", s.opts.Load, func(o *Options) int { return o.MaxReceivingBytes }, ownmetrics.Count(func() (used int) {
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
