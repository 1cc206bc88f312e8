package refusals

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// otherTemplates is the label of templates that have none of their own.
const otherTemplates = "other"

// anyReason is the reason of the series that is there before the first refusal.
const anyReason = "other"

type metrics struct {
	refused *prometheus.CounterVec
	evicted prometheus.Counter
	leftOut prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refused: ownmetrics.CounterVec(
			"agentstatsd_refused_items_total",
			"What agents were refused, and what of them expired, by the template of the first 20 templates and by reason; the log names the agents.",
			ownmetrics.Values("template", otherTemplates), ownmetrics.Values("reason", anyReason),
		),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_refused_agents_forgotten_total", Help: "Agents whose last refusals were forgotten to make room.",
		}),
		leftOut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_refused_agents_not_logged_total", Help: "Agents that were refused something and that no line of the log names, as there were too many.",
		}),
	}
	return m, ownmetrics.Register(reg, m.refused, m.evicted, m.leftOut)
}

// registerLimits registers the limits of what is kept.
func (r *Refusals) registerLimits(reg prometheus.Registerer) error {
	return ownmetrics.RegisterLimits(reg,
		ownmetrics.Fixed("refused_agents", r.opts.MaxAgents, ownmetrics.Count(func() int {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.slots.Len()
		})),
		ownmetrics.Fixed("refused_agents_bytes", r.opts.MaxBytes, ownmetrics.Count(func() int {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.bytes
		})),
	)
}
