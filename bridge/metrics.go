package bridge

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/bridge/internal/copies"
	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// The reasons for which a connection is not decoded at all.
const (
	// reasonVersion is that of an API whose major version is not 2.
	reasonVersion decode.Reason = "version"
	// reasonExtension is that of a WebSocket extension that coderd accepted.
	reasonExtension decode.Reason = "extension"
)

type metrics struct {
	decoders prometheus.Gauge
	ended    *prometheus.CounterVec
	skipped  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		decoders: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_bridge_decoders",
			Help: "Connections of agents that are decoded.",
		}),
		ended: ownmetrics.CounterVec("agentstatsd_bridge_decoders_given_up_total", "Connections of agents that go on without being decoded, by reason.",
			ownmetrics.Values("reason",
				reasonVersion, reasonExtension, copies.ReasonBehind, copies.ReasonPanic, decode.ReasonWebSocket,
				decode.ReasonYamux, decode.ReasonDRPC, decode.ReasonReused, decode.ReasonMessage, decode.ReasonStreams,
				decode.ReasonManifest, decode.ReasonIdentity, decode.ReasonMemory)),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_calls_skipped_total",
			Help: "Calls of agents that were too large to be decoded.",
		}),
	}
	return m, ownmetrics.Register(reg, m.decoders, m.ended, m.skipped)
}

// registerGauges registers what is read at a scrape, and the limits.
func (b *Bridge) registerGauges(reg prometheus.Registerer) error {
	err := ownmetrics.RegisterLimits(reg,
		ownmetrics.Fixed("decoder_bytes", b.opts.MaxDecoderBytes, func() float64 { return float64(b.budget.Used()) }),
		ownmetrics.Fixed("relayed_agents", b.opts.MaxAgents, ownmetrics.Count(b.relaying.Connected)),
	)
	if err != nil {
		return err
	}
	return ownmetrics.Register(reg, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_bridge_decoder_bytes",
		Help: "Memory of all decoders, of at most --max-decoder-bytes.",
	}, func() float64 { return float64(b.budget.Used()) }))
}
