package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry with the Go and process families that client_golang's
// default registry has, but for process_network_*, which coderd pushes of its own process.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		withoutNetwork{collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})},
		// Documented, but gone from client_golang since 1.22.
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "go_memstats_lookups_total",
			Help: "Total number of pointer lookups.",
		}, func() float64 { return 0 }),
	)
	return reg
}

// withoutNetwork leaves process_network_* out of a collector of few metrics.
type withoutNetwork struct{ prometheus.Collector }

// Describe implements prometheus.Collector.
func (c withoutNetwork) Describe(out chan<- *prometheus.Desc) {
	forEach(c.Collector.Describe, func(d *prometheus.Desc) {
		if !isNetwork(d) {
			out <- d
		}
	})
}

// Collect implements prometheus.Collector.
func (c withoutNetwork) Collect(out chan<- prometheus.Metric) {
	forEach(c.Collector.Collect, func(m prometheus.Metric) {
		if !isNetwork(m.Desc()) {
			out <- m
		}
	})
}

// forEach calls each with all that send sends.
func forEach[T any](send func(chan<- T), each func(T)) {
	all := make(chan T)
	go func() {
		defer close(all)
		send(all)
	}()
	for v := range all {
		each(v)
	}
}

// isNetwork reports whether d is of a family process_network_*. A Desc has its name only
// in its text.
func isNetwork(d *prometheus.Desc) bool {
	return strings.Contains(d.String(), `fqName: "process_network_`)
}
