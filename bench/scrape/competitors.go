package scrape

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	vm "github.com/VictoriaMetrics/metrics"
	"github.com/klauspost/compress/gzhttp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
)

const help = "Forwarded by workspace agents."

// collector serves what it holds by making const metrics at each scrape.
type collector struct {
	// anew has descriptors made at each scrape too, one for each metric, as
	// coderd's collector of what agents forward does.
	anew  bool
	names []string
	descs []*prometheus.Desc
	types []prometheus.ValueType
	// labels are the names of a family's.
	labels [][]string
	// values of the labels, and numbers, are by agent and family.
	values  [][]string
	numbers []float64
}

func newCollector(agents int, anew bool) *collector {
	c := &collector{anew: anew}
	for s := range load.Each(0) {
		kind := prometheus.GaugeValue
		if s.Counter {
			kind = prometheus.CounterValue
		}
		c.descs = append(c.descs, prometheus.NewDesc(s.Name, help, s.Labels, nil))
		c.types = append(c.types, kind)
		c.names = append(c.names, s.Name)
		c.labels = append(c.labels, s.Labels)
	}
	for n := range agents {
		for s := range load.Each(n) {
			c.values = append(c.values, s.Values)
			c.numbers = append(c.numbers, s.Value)
		}
	}
	return c
}

// Describe implements prometheus.Collector: none, so it is unchecked.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for i, values := range c.values {
		family := i % load.PerAgent
		desc := c.descs[family]
		if c.anew {
			desc = prometheus.NewDesc(c.names[family], help, c.labels[family], nil)
		}
		ch <- prometheus.MustNewConstMetric(desc, c.types[family], c.numbers[i], values...)
	}
}

func serveCollector(anew bool) func(ctx context.Context, c *process.Console, series int) error {
	return func(ctx context.Context, c *process.Console, series int) error {
		before := heap()
		reg := prometheus.NewRegistry()
		if err := reg.Register(newCollector(load.Agents(series), anew)); err != nil {
			return err
		}
		return serve(ctx, c, promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), heapSince(before))
	}
}

// serveGaugeVec serves one GaugeVec for each family, also for counters, as their
// values are set and not counted.
func serveGaugeVec(ctx context.Context, c *process.Console, series int) error {
	before := heap()
	reg := prometheus.NewRegistry()
	vecs := make(map[string]*prometheus.GaugeVec)
	for n := range load.Agents(series) {
		for s := range load.Each(n) {
			vec, ok := vecs[s.Name]
			if !ok {
				vec = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: s.Name, Help: help}, s.Labels)
				if err := reg.Register(vec); err != nil {
					return err
				}
				vecs[s.Name] = vec
			}
			vec.WithLabelValues(s.Values...).Set(s.Value)
		}
	}
	return serve(ctx, c, promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), heapSince(before))
}

// serveVictoria serves a set of VictoriaMetrics/metrics, which knows text only
// and has no compression of its own.
func serveVictoria(ctx context.Context, c *process.Console, series int) error {
	before := heap()
	set := vm.NewSet()
	var name strings.Builder
	for n := range load.Agents(series) {
		for s := range load.Each(n) {
			name.Reset()
			name.WriteString(s.Name)
			for i, label := range s.Labels {
				name.WriteByte("{,"[min(i, 1)])
				name.WriteString(label)
				name.WriteByte('=')
				name.WriteString(strconv.Quote(s.Values[i]))
			}
			name.WriteByte('}')
			set.GetOrCreateGauge(name.String(), nil).Set(s.Value)
		}
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		set.WritePrometheus(w)
	})
	return serve(ctx, c, gzhttp.GzipHandler(handler), heapSince(before))
}

func heapSince(before int64) map[string]process.Handler {
	return map[string]process.Handler{
		"heap": func(func(any) error) (any, error) { return heap() - before, nil },
	}
}
