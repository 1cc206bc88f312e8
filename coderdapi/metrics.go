package coderdapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Kinds of watches, as the gauge labels them.
const (
	watchMetadata = "metadata"
	watchAgents   = "agents"
	watchStats    = "stats"
)

// Kinds of streams that are refused, as the counter labels them.
const (
	refusedWatch = "watch"
	refusedSync  = "sync"
	refusedPush  = "push"
)

type metrics struct {
	watches         *prometheus.GaugeVec
	pushes          prometheus.Gauge
	refused         *prometheus.CounterVec
	watchErrors     prometheus.Counter
	oversizedPushes prometheus.Counter
	bytesRefused    *prometheus.CounterVec
	slowedCalls     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		watches:         prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "agentstatsd_watches", Help: "Open watches, by what is watched."}, []string{"kind"}),
		pushes:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_pushes", Help: "Instances of coderd that push."}),
		refused:         prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_streams_refused_total", Help: "Streams refused because too many were open."}, []string{"kind"}),
		watchErrors:     prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_watch_read_errors_total", Help: "Reads for watches of metadata that failed and are tried again."}),
		bytesRefused:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "agentstatsd_coderd_memory_refused_total", Help: "Messages of coderd refused, watches ended, and batches of reports delayed, as all calls of their kind take too much memory."}, []string{"kind"}),
		slowedCalls:     prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_coderd_calls_slowed_total", Help: "Calls of coderd whose end was delayed, as calls that were refused or cancelled had sent too much."}),
		oversizedPushes: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_push_oversized_total", Help: "Pushes ended as a snapshot was above the limit of bytes."}),
	}
	for _, kind := range []string{watchMetadata, watchAgents, watchStats} {
		m.watches.WithLabelValues(kind)
	}
	for _, kind := range []string{refusedWatch, refusedSync, refusedPush} {
		m.refused.WithLabelValues(kind)
	}
	for _, kind := range []string{bytesRegistrations, bytesPushes, bytesWatches, bytesReads, bytesBatches} {
		m.bytesRefused.WithLabelValues(kind)
	}
	return m, ownmetrics.Register(reg, m.watches, m.pushes, m.refused, m.watchErrors, m.bytesRefused, m.slowedCalls, m.oversizedPushes)
}

// registerGauges registers the gauges of what calls have in memory now.
func (s *Service) registerGauges(reg prometheus.Registerer) error {
	var gauges []prometheus.Collector
	for kind, inUse := range map[string]func() int{
		bytesRegistrations: s.byteBudgets[agentstatsv1.CoderdService_RegisterAgents_FullMethodName].inUse,
		bytesPushes:        s.byteBudgets[agentstatsv1.CoderdService_PushMetrics_FullMethodName].inUse,
		bytesWatches:       s.watchBytes.inUse,
	} {
		gauges = append(gauges, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_coderd_memory_bytes", Help: "Estimated memory of the calls of coderd under way, in bytes.",
			ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return float64(inUse()) }))
	}
	return ownmetrics.Register(reg, gauges...)
}
