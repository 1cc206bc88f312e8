package metrics

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Header is what a scrape in text shows of a family without series: HELP and TYPE.
type Header struct {
	Name, Help string
	Type       Type
}

// AppendText appends the lines of the text format.
func (h Header) AppendText(dst []byte) []byte {
	return AppendTextHeader(dst, h.Name, h.Help, h.Type)
}

// Registry also knows the families of which there is no series yet.
type Registry struct {
	*prometheus.Registry

	mu sync.Mutex
	// headers are sorted. Guarded by mu.
	headers []Header
}

// NewRegistry returns a registry with the Go and process families that client_golang's
// default registry has, but for process_network_*, which coderd pushes of its own process.
func NewRegistry() *Registry {
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
	return &Registry{Registry: reg}
}

// Register implements prometheus.Registerer. It keeps the header of a family that may have
// no series: one of series by labels.
func (r *Registry) Register(c prometheus.Collector) error {
	if err := r.Registry.Register(c); err != nil {
		return err
	}
	t := vectorType(c)
	if t == Untyped {
		return nil
	}
	var err error
	forEach(c.Describe, func(d *prometheus.Desc) {
		h := Header{Type: t}
		if h.Name, h.Help, err = textsOf(d); err != nil {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		i, _ := slices.BinarySearchFunc(r.headers, h.Name, func(h Header, name string) int { return strings.Compare(h.Name, name) })
		r.headers = slices.Insert(r.headers, i, h)
	})
	return err
}

// Headers returns those of all families that may have no series, sorted by name.
func (r *Registry) Headers() []Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.headers)
}

// vectorType returns the type of the series of a collector by labels; Untyped: it is none.
func vectorType(c prometheus.Collector) Type {
	switch c.(type) {
	case interface {
		WithLabelValues(values ...string) prometheus.Counter
	}:
		return Counter
	case interface {
		WithLabelValues(values ...string) prometheus.Gauge
	}:
		return Gauge
	case interface {
		WithLabelValues(values ...string) prometheus.Observer
	}:
		return Histogram
	}
	return Untyped
}

// described matches the begin of a Desc's text. It has no other way to its name and help.
var described = regexp.MustCompile(`^Desc{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"),`)

// textsOf returns the name and the help of a family.
func textsOf(d *prometheus.Desc) (name, help string, err error) {
	quoted := described.FindStringSubmatch(d.String())
	if quoted == nil {
		return "", "", fmt.Errorf("%s: want its name and help", d)
	}
	if name, err = strconv.Unquote(quoted[1]); err != nil {
		return "", "", fmt.Errorf("name of %s: %w", d, err)
	}
	if help, err = strconv.Unquote(quoted[2]); err != nil {
		return "", "", fmt.Errorf("help of %s: %w", d, err)
	}
	return name, help, nil
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
