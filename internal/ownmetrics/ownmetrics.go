// Package ownmetrics makes and registers the metrics of the service's own components.
// Whoever makes a family names the values of its labels. So a process serves a series for
// each of them from its start, at 0, and rate() sees the first event.
package ownmetrics

import (
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Label is a label of a family.
type Label struct {
	name   string
	values []string
}

// Values is a label with the values that it can have, or those of them that are known.
func Values[V ~string](name string, values ...V) Label {
	l := Label{name: name}
	for _, v := range values {
		l.values = append(l.values, string(v))
	}
	return l
}

// Open is a label whose values are known when they are there. A family with one has no
// series before, but metrics.Registry knows it.
func Open(name string) Label { return Label{name: name} }

// CounterVec returns counters by labels, with those of all values.
func CounterVec(name, help string, labels ...Label) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, names(labels))
	for _, values := range combinations(labels) {
		v.WithLabelValues(values...)
	}
	return v
}

// GaugeVec returns gauges by labels, with those of all values.
func GaugeVec(name, help string, labels ...Label) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, names(labels))
	for _, values := range combinations(labels) {
		v.WithLabelValues(values...)
	}
	return v
}

// HistogramVec returns histograms by labels, with those of all values.
func HistogramVec(opts prometheus.HistogramOpts, labels ...Label) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(opts, names(labels))
	for _, values := range combinations(labels) {
		v.WithLabelValues(values...)
	}
	return v
}

func names(labels []Label) []string {
	names := make([]string, len(labels))
	for i, l := range labels {
		names[i] = l.name
	}
	return names
}

// combinations returns all combinations of the labels' values.
func combinations(labels []Label) [][]string {
	all := [][]string{nil}
	for _, l := range labels {
		var longer [][]string
		for _, before := range all {
			for _, value := range l.values {
				longer = append(longer, append(slices.Clone(before), value))
			}
		}
		all = longer
	}
	return all
}

// Register registers collectors with reg. It ends at the first one that reg refuses, as
// another component has its name.
func Register(reg prometheus.Registerer, collectors ...prometheus.Collector) error {
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
