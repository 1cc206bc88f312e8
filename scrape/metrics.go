package scrape

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Formats, encodings and causes, as the metrics label them.
const (
	formatText, formatProtobuf     = "text", "protobuf"
	encodingGzip, encodingIdentity = "gzip", "identity"

	causeGather = "gather"
	causeWrite  = "write"
	causePart   = "part"
)

type ownMetrics struct {
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	errors   *prometheus.CounterVec
	last     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*ownMetrics, error) {
	m := &ownMetrics{
		duration: ownmetrics.HistogramVec(prometheus.HistogramOpts{
			Name: "agentstatsd_scrape_duration_seconds",
			Help: "Time from a scrape's start to its last byte, by format (text, protobuf).",
			// From a small fleet's plain scrape to a slow client's.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, ownmetrics.Values("format", formatText, formatProtobuf)),
		bytes: ownmetrics.CounterVec("agentstatsd_scrape_bytes_total", "Bytes of scrapes handed to the network, by encoding (gzip, identity).",
			ownmetrics.Values("encoding", encodingGzip, encodingIdentity)),
		errors: ownmetrics.CounterVec("agentstatsd_scrape_errors_total",
			"Scrapes that were not served whole, by cause (gather: some own families left out; write: the client went away or was too slow; part: cut short).",
			ownmetrics.Values("cause", causeGather, causeWrite, causePart)),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_last_scrape_timestamp_seconds", Help: "Unix time at which the newest scrape was served whole; 0: none was.",
		}),
	}
	return m, ownmetrics.Register(reg, m.duration, m.bytes, m.errors, m.last)
}
