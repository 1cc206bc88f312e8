package ownmetrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Limit is what an option bounds.
type Limit struct {
	// What is the option without its max: series of --max-series.
	What string
	// Limit returns the limit in force.
	Limit func() float64
	// Usage returns how much of it is used now; nil: it is a limit of one message or of a
	// rate, of which nothing is used. Of a limit of one agent, owner, address or connection
	// it is what the one has that has the most.
	Usage func() float64
}

// Fixed returns a limit that stays as it is.
func Fixed[N ~int | ~int64 | ~uint32](what string, limit N, usage func() float64) Limit {
	return Limit{what, func() float64 { return float64(limit) }, usage}
}

// Of returns a limit of the options in force, which can be others later.
func Of[O any, N ~int | ~int64 | ~uint32](what string, inForce func() *O, of func(*O) N, usage func() float64) Limit {
	return Limit{what, func() float64 { return float64(of(inForce())) }, usage}
}

// Value returns the value of a gauge.
func Value(gauge prometheus.Gauge) func() float64 {
	return func() float64 {
		var m dto.Metric
		if gauge.Write(&m) != nil {
			return 0
		}
		return m.GetGauge().GetValue()
	}
}

// Count returns what count does.
func Count(count func() int) func() float64 {
	return func() float64 { return float64(count()) }
}

// RegisterLimits registers limits, and what is used of them.
func RegisterLimits(reg prometheus.Registerer, limits ...Limit) error {
	for _, l := range limits {
		what := prometheus.Labels{"what": l.What}
		gauges := []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_limit", Help: "Limits, each by the option that sets it, without its max: series is that of --max-series.", ConstLabels: what,
		}, l.Limit)}
		if l.Usage != nil {
			gauges = append(gauges, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "agentstatsd_usage", Help: "What is used now of agentstatsd_limit. Of a limit of one agent, owner, address, connection or instance it is what the one has that has the most.", ConstLabels: what,
			}, l.Usage))
		}
		if err := Register(reg, gauges...); err != nil {
			return err
		}
	}
	return nil
}
