package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry with the Go and process families that
// client_golang's default registry has.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		// Documented, but gone from client_golang since 1.22.
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "go_memstats_lookups_total",
			Help: "Total number of pointer lookups.",
		}, func() float64 { return 0 }),
	)
	return reg
}
