// Package metrics has what all parts of the exposition share: the catalogue of
// documented families, the rules for names, rendering, and the service's own registry.
// A part and a scrape exchange segments, compressed or not.
package metrics

import (
	"io"
	"math"
)

// Exposer writes a part of the exposition. Both methods may be called
// concurrently; the parts of one endpoint have no family in common.
//
// An error of w is returned unchanged. A Write to w may block for as long as a
// slow client lets it: no lock is held across one.
type Exposer interface {
	// WriteText writes families in the text format 0.0.4.
	WriteText(w io.Writer) error
	// WriteProtobuf writes families as io.prometheus.client.MetricFamily
	// messages, each preceded by its length as a varint.
	WriteProtobuf(w io.Writer) error
	// Shard returns what writes a part of that: each series is in one of the parts.
	Shard(s Shard) Exposer
}

// Type is the type of a family.
type Type uint8

// The types of families.
const (
	Untyped Type = iota
	Counter
	Gauge
	Summary
	Histogram
)

// String returns t as the text format writes it.
func (t Type) String() string {
	switch t {
	case Counter:
		return "counter"
	case Gauge:
		return "gauge"
	case Summary:
		return "summary"
	case Histogram:
		return "histogram"
	default:
		return "untyped"
	}
}

// CanonicalValue returns v with one bit pattern for everything that is not a number,
// other than Prometheus's marker of the end of a series. It removes the sign of
// zero, which the text format does not have.
func CanonicalValue(v float64) float64 {
	switch {
	case v != v:
		return math.NaN()
	case v == 0:
		return 0
	}
	return v
}
