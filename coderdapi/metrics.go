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
		watches: ownmetrics.GaugeVec("agentstatsd_watches", "Open watches, by what is watched.",
			ownmetrics.Values("kind", watchMetadata, watchAgents, watchStats)),
		pushes: prometheus.NewGauge(prometheus.GaugeOpts{Name: "agentstatsd_push_streams", Help: "Streams on which instances of coderd push."}),
		refused: ownmetrics.CounterVec("agentstatsd_streams_refused_total", "Streams refused because too many were open.",
			ownmetrics.Values("kind", refusedWatch, refusedSync, refusedPush)),
		watchErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_watch_read_errors_total", Help: "Reads for watches of metadata that failed and are tried again."}),
		bytesRefused: ownmetrics.CounterVec("agentstatsd_coderd_memory_refused_total",
			"Messages of coderd refused, watches ended, and batches of reports delayed, as all calls of their kind take too much memory.",
			ownmetrics.Values("kind", bytesRegistrations, bytesPushes, bytesWatches, bytesReads, bytesBatches)),
		slowedCalls:     prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_coderd_calls_slowed_total", Help: "Calls of coderd whose end was delayed, as calls that were refused or cancelled had sent too much."}),
		oversizedPushes: prometheus.NewCounter(prometheus.CounterOpts{Name: "agentstatsd_push_oversized_total", Help: "Pushes ended as a snapshot was above the limit of bytes."}),
	}
	return m, ownmetrics.Register(reg, m.watches, m.pushes, m.refused, m.watchErrors, m.bytesRefused, m.slowedCalls, m.oversizedPushes)
}

// registerGauges registers the gauges of what calls have in memory now, and the limits.
func (s *Service) registerGauges(reg prometheus.Registerer) error {
	registrations := s.byteBudgets[agentstatsv1.CoderdService_RegisterAgents_FullMethodName]
	pushes := s.byteBudgets[agentstatsv1.CoderdService_PushMetrics_FullMethodName]
	err := ownmetrics.RegisterLimits(reg,
		ownmetrics.Of("watches", s.opts.Load, func(o *Options) int { return o.MaxWatches }, ownmetrics.Count(s.watches.InUse)),
		ownmetrics.Of("watch_bytes", s.opts.Load, func(o *Options) int { return o.MaxWatchBytes }, nil),
		ownmetrics.Of("watches_bytes", s.opts.Load, func(o *Options) int { return o.MaxWatchesBytes }, ownmetrics.Count(s.watchBytes.inUse)),
		ownmetrics.Of("syncs", s.opts.Load, func(o *Options) int { return o.MaxSyncs }, ownmetrics.Count(s.syncs.InUse)),
		ownmetrics.Of("sync_bytes", s.opts.Load, func(o *Options) int { return o.MaxSyncBytes }, ownmetrics.Count(registrations.inUse)),
		ownmetrics.Of("push_bytes", s.opts.Load, func(o *Options) int { return o.MaxPushBytes }, nil),
		ownmetrics.Of("pushes_bytes", s.opts.Load, func(o *Options) int { return o.MaxPushesBytes }, ownmetrics.Count(pushes.inUse)),
		ownmetrics.Of("registration_bytes", s.opts.Load, func(o *Options) int { return o.MaxRegistrationBytes }, nil),
		ownmetrics.Of("metadata_declared_keys", s.opts.Load, func(o *Options) int { return o.MaxDeclaredKeys }, nil),
	)
	if err != nil {
		return err
	}
	var gauges []prometheus.Collector
	for kind, inUse := range map[string]func() int{
		bytesRegistrations: registrations.inUse,
		bytesPushes:        pushes.inUse,
		bytesWatches:       s.watchBytes.inUse,
	} {
		gauges = append(gauges, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_coderd_memory_bytes", Help: "Estimated memory of the calls of coderd under way, in bytes.",
			ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return float64(inUse()) }))
	}
	return ownmetrics.Register(reg, gauges...)
}
