package web

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Limits that close connections, as the counter labels them.
const (
	limitAddress = "address"
	limitAll     = "all"
)

// serverMetrics are those of one listener.
type serverMetrics struct {
	closed *prometheus.CounterVec
}

func newServerMetrics(reg prometheus.Registerer) (*serverMetrics, error) {
	m := &serverMetrics{
		closed: ownmetrics.CounterVec("agentstatsd_http_connections_closed_total", "Connections of HTTP closed to stay within a limit (address: of one address; all: in all).",
			ownmetrics.Values("limit", limitAddress, limitAll)),
	}
	return m, ownmetrics.Register(reg, m.closed)
}

// registerGauges registers the gauges of what the server has now.
func (s *Server) registerGauges(reg prometheus.Registerer) error {
	gauges := []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_http_connections", Help: "Open connections of HTTP.",
	}, func() float64 { return float64(s.conns.len()) })}
	if s.settings != nil {
		gauges = append(gauges, s.settings.Collector())
	}
	return ownmetrics.Register(reg, gauges...)
}

// registerLimits registers the limits of the listener of that name.
func (s *Server) registerLimits(listener string, reg prometheus.Registerer) error {
	return ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("http_connections/"+listener, s.inForce, func(o *Options) int { return o.MaxConns }, ownmetrics.Count(s.conns.len)),
		ownmetrics.Of("http_connections_per_address/"+listener, s.inForce, func(o *Options) int { return o.MaxConnsPerAddress }, ownmetrics.Count(s.conns.most)),
	)
}

// slotsMetrics are those of what has slots.
type slotsMetrics struct {
	refused, cut prometheus.Counter
}

func newSlotsMetrics(what string, reg prometheus.Registerer) (*slotsMetrics, error) {
	m := &slotsMetrics{
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_" + what + "_refused_total",
			Help: capital(what) + " answered 503: as many as may be served at once, or in a second, were, for as long as it could wait.",
		}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_" + what + "_cut_total",
			Help: capital(what) + " ended before they were whole: their readers took nothing, or too little, while others waited.",
		}),
	}
	return m, ownmetrics.Register(reg, m.refused, m.cut)
}

// capital returns a word with a capital letter, for the beginning of a sentence.
func capital(word string) string { return strings.ToUpper(word[:1]) + word[1:] }

// registerGauges registers the gauge of requests that wait now, and the limits.
func (s *Slots) registerGauges(reg prometheus.Registerer) error {
	err := ownmetrics.RegisterLimits(reg,
		ownmetrics.Limit{What: "concurrent_" + s.what, Limit: func() float64 {
			slots, _ := s.Limits()
			return float64(slots)
		}, Usage: func() float64 {
			s.line.mu.Lock()
			defer s.line.mu.Unlock()
			return float64(len(s.line.running))
		}},
		ownmetrics.Limit{What: s.what + "_per_second", Limit: func() float64 { return float64(s.line.pace.Limit()) }},
	)
	if err != nil {
		return err
	}
	return ownmetrics.Register(reg, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_" + s.what + "_waiting",
		Help: capital(s.what) + " that wait until others are served.",
	}, func() float64 {
		s.line.mu.Lock()
		defer s.line.mu.Unlock()
		return float64(len(s.line.waiting))
	}))
}
