package registrations

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Outcomes of syncs and of agents that were not known, as the counters label them.
const (
	outcomeSynced  = "synced"
	outcomeLeft    = "left_to_another"
	outcomeDoubt   = "in_doubt" // registered, and nothing removed
	outcomeRefused = "token_refused"
	outcomeCoder   = "coder_failed"
	outcomeService = "service_failed"

	agentRegistered = "registered"
	agentNotCurrent = "not_current"
	agentHidden     = "not_visible"
	agentListed     = "left_to_sync"
	agentBeyond     = "beyond_limit"
)

type metrics struct {
	syncs, unknown *prometheus.CounterVec
	removed        prometheus.Counter
	sharing        prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		syncs: ownmetrics.CounterVec("agentstatsd_bridge_syncs_total",
			"Syncs of registrations by outcome (left_to_another: another bridge does it; in_doubt: nothing was removed, as the API token may have lost rights).",
			ownmetrics.Values("outcome", outcomeSynced, outcomeLeft, outcomeDoubt, outcomeRefused, outcomeCoder, outcomeService)),
		unknown: ownmetrics.CounterVec("agentstatsd_bridge_unknown_agents_total",
			"Agents that connected and were not registered, by what became of them (not_current: they are of no latest build that is started; not_visible: coderd does not show their workspaces to the API token).",
			ownmetrics.Values("outcome", agentRegistered, agentNotCurrent, agentHidden, agentListed, agentBeyond)),
		removed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "agentstatsd_bridge_agents_removed_total",
			Help: "Agents that syncs deregistered.",
		}),
		sharing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "agentstatsd_bridge_sharing_bridges",
			Help: "Bridges that share --coder-max-requests-per-second, this one among them; 0: the service has not said it yet.",
		}),
	}
	return m, ownmetrics.Register(reg, m.syncs, m.unknown, m.removed, m.sharing)
}

// registerGauges registers what is read at a scrape.
func (r *Registrations) registerGauges(reg prometheus.Registerer) error {
	gauge := func(name, help string, valueLocked func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			r.mu.Lock()
			defer r.mu.Unlock()
			return valueLocked()
		})
	}
	return ownmetrics.Register(reg,
		gauge("agentstatsd_bridge_last_sync_timestamp_seconds", "Unix time of the newest sync of this bridge that succeeded; 0: none has.", func() float64 {
			if r.syncedAt.IsZero() {
				return 0
			}
			return float64(r.syncedAt.UnixMilli()) / 1000
		}),
		gauge("agentstatsd_bridge_registrations_paused", "1 while coderd refuses the API token.", func() float64 {
			if r.paused != nil {
				return 1
			}
			return 0
		}),
		gauge("agentstatsd_bridge_registered_agents", "Agents that are registered, by the newest sync and since.", func() float64 { return float64(len(r.agents)) }),
		gauge("agentstatsd_bridge_visible_workspaces", "Workspaces that coderd showed in the newest sync of this bridge. To an API token whose user lacks the role Template Admin it shows none, without an error.", func() float64 { return float64(r.visible) }),
		gauge("agentstatsd_bridge_unknown_agents_waiting", "Agents that connected, are not registered, and wait for that.", func() float64 { return float64(len(r.unknown.waiting)) }),
	)
}

// errService is wrapped by errors of the service.
var errService = errors.New("agentstatsd")

// errDoubt means that what is known was registered, and nothing was removed.
var errDoubt = errors.New("what coderd shows cannot be all")

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return outcomeSynced
	case errors.Is(err, errDoubt):
		return outcomeDoubt
	case errors.Is(err, coder.ErrUnauthorized):
		return outcomeRefused
	case errors.Is(err, errService):
		return outcomeService
	}
	return outcomeCoder
}
