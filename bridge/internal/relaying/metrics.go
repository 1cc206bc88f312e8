package relaying

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// callManifest is counted beside the calls of decode.Handler.Call.
const callManifest = "/coder.agent.v2.Agent/GetManifest"

type metrics struct {
	calls  map[string]prometheus.Counter
	failed prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	full := []string{callManifest, decode.CallCoordinate, decode.CallStats, decode.CallLifecycle, decode.CallAppHealths, decode.CallMetadata}
	names := make([]string, len(full))
	for i, call := range full {
		names[i] = call[strings.LastIndexByte(call, '/')+1:]
	}
	calls := ownmetrics.CounterVec("agentstatsd_bridge_calls_total", "Calls of agents that were decoded and that coderd accepted, by name.",
		ownmetrics.Values("call", names...))
	m := &metrics{
		calls: make(map[string]prometheus.Counter),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_relay_errors_total",
			Help: "Calls of agents that were decoded and not relayed, or not all of them.",
		}),
	}
	for i, call := range full {
		m.calls[call] = calls.WithLabelValues(names[i])
	}
	return m, ownmetrics.Register(reg, calls, m.failed)
}

func (m *metrics) count(call string) { m.calls[call].Inc() }
