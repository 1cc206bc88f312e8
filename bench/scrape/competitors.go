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

// collector serves what it holds by making const metrics at each scrape, as
// coderd and most exporters do.
type collector struct {
	descs []*prometheus.Desc
	types []prometheus.ValueType
	// labels and values are by agent and family.
	labels [][]string
	values []float64
}

func newCollector(agents int) *collector {
	c := new(collector)
	for s := range load.Each(0) {
		kind := prometheus.GaugeValue
		if s.Counter {
			kind = prometheus.CounterValue
		}
		c.descs = append(c.descs, prometheus.NewDesc(s.Name, help, s.Labels, nil))
		c.types = append(c.types, kind)
	}
	for n := range agents {
		for s := range load.Each(n) {
			c.labels = append(c.labels, s.Values)
			c.values = append(c.values, s.Value)
		}
	}
	return c
}

// Describe implements prometheus.Collector: none, so it is unchecked.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for i, labels := range c.labels {
		family := i % load.PerAgent
		ch <- prometheus.MustNewConstMetric(c.descs[family], c.types[family], c.values[i], labels...)
	}
}

func serveCollector(ctx context.Context, c *process.Console, series int) error {
	before := heap()
	reg := prometheus.NewRegistry()
	if err := reg.Register(newCollector(load.Agents(series))); err != nil {
		return err
	}
	return serve(ctx, c, promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), heapSince(before))
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
