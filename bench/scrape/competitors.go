package scrape

import (
	"context"
	"math/rand/v2"
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

// held is a series that is made a metric of at each scrape.
type held struct {
	family int
	labels []string // their values
	value  float64
}

// collector serves what it holds by making const metrics at each scrape.
type collector struct {
	descs  []*prometheus.Desc
	types  []prometheus.ValueType
	series []held
}

// newCollector returns a collector of the series of that many agents, which came
// in an order that is not that of their names.
func newCollector(agents int) *collector {
	c := new(collector)
	for s := range load.Each(0) {
		c.descs = append(c.descs, prometheus.NewDesc(s.Name, help, s.Labels, nil))
		c.types = append(c.types, valueType(s))
	}
	for _, n := range rand.New(rand.NewPCG(1, 2)).Perm(agents) {
		family := 0
		for s := range load.Each(n) {
			c.series = append(c.series, held{family, s.Values, s.Value})
			family++
		}
	}
	return c
}

func valueType(s load.Series) prometheus.ValueType {
	if s.Counter {
		return prometheus.CounterValue
	}
	return prometheus.GaugeValue
}

// Describe implements prometheus.Collector: none, so it is unchecked.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.series {
		ch <- prometheus.MustNewConstMetric(c.descs[s.family], c.types[s.family], s.value, s.labels...)
	}
}

// coderdCollector serves series as coderd's collector of what agents forward
// does: it holds them in a map, and makes the descriptors at each scrape too.
type coderdCollector map[string]load.Series

func newCoderdCollector(agents int) coderdCollector {
	c := make(coderdCollector)
	for n := range agents {
		for s := range load.Each(n) {
			c[s.Name+"|"+strings.Join(s.Values, "|")] = s
		}
	}
	return c
}

// Describe implements prometheus.Collector: none, so it is unchecked.
func (coderdCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c coderdCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c {
		desc := prometheus.NewDesc(s.Name, help, s.Labels, nil)
		ch <- prometheus.MustNewConstMetric(desc, valueType(s), s.Value, s.Values...)
	}
}

// serveCollector serves a collector that is made for that many agents.
func serveCollector(collect func(agents int) prometheus.Collector) func(ctx context.Context, c *process.Console, series int) error {
	return func(ctx context.Context, c *process.Console, series int) error {
		before := heap()
		reg := prometheus.NewRegistry()
		if err := reg.Register(collect(load.Agents(series))); err != nil {
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
