package fleet

import (
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/apphealth"
	"github.com/coder/agentstatsd/fleet/internal/metadatakeys"
)

// Request is one request of an agent while it is handled. It is valid during the
// call that it is passed to.
type Request struct {
	fleet    *Fleet
	entry    *entry
	session  *Session
	order    agent.Order
	instance *instance
	now      time.Time
}

// Agent returns the id of the agent.
func (r Request) Agent() agent.ID { return r.entry.id }

// Workspace returns the agent's workspace, which is shared and must not be changed.
func (r Request) Workspace() *agent.Workspace { return &r.session.reg.Load().Workspace }

// Owner returns what stands for the owner of the agent's workspace.
func (r Request) Owner() agent.ID { return r.session.reg.Load().Workspace.Owner() }

// Incarnation returns the incarnation of the agent's registration.
func (r Request) Incarnation() int64 { return r.session.reg.Load().Incarnation }

// Epoch returns the epoch of the session, under which the agent's series are open.
func (r Request) Epoch() int64 { return r.session.info.Epoch }

// IsRelayed reports whether a relay of the agent sent the request.
func (r Request) IsRelayed() bool { return r.session.hello.Relayed }

// Order returns the order of the request among all requests of the agent.
func (r Request) Order() agent.Order { return r.order }

// Now returns the time of receipt.
func (r Request) Now() time.Time { return r.now }

// Tracker returns the tracker of the instance that sent the request.
func (r Request) Tracker() agent.Tracker { return r.instance }

// Instance returns the instance that sent the request.
func (r Request) Instance() agent.Instance { return r.session.info.Instance }

// AwaitReport keeps the request from being acked as received until the tracker that it
// returns is notified.
func (r Request) AwaitReport() agent.ReportTracker {
	r.instance.AddUnwritten(r.order.Sequence)
	return r.instance
}

// Refuse queues refusals for the instance. No ack covers the request before they are
// sent. It takes ownership of the refusals and their names.
func (r Request) Refuse(refused []agent.Refusal) { r.instance.AddRefusals(r.order.Sequence, refused) }

// AdmitMetadata returns the entries with admitted keys, and refusals of the others.
// A template that declares keys admits those. Otherwise the first
// Options.MaxMetadataKeys keys of the agent are admitted. It reuses the memory of
// entries, and copies the texts that it retains. Keys that cannot be stored pass without
// being counted: the batcher refuses them.
func (r Request) AdmitMetadata(entries []agent.MetadataEntry) ([]agent.MetadataEntry, []agent.Refusal) {
	var refused *agent.Refusal
	if declared := r.session.reg.Load().MetadataKeys; len(declared) > 0 {
		entries, refused = metadatakeys.AdmitDeclared(entries, declared)
	} else {
		r.entry.mu.Lock()
		entries, refused = r.entry.activeLocked().metadataKeys.Admit(entries, r.fleet.opts.Load().MaxMetadataKeys)
		r.entry.mu.Unlock()
	}
	if refused == nil {
		return entries, nil
	}
	r.fleet.metrics.refusedKeys.WithLabelValues(refused.Reason).Add(float64(refused.Count))
	return entries, []agent.Refusal{*refused}
}

// SetAppHealth records the health of apps, unless a newer one is known. The request's ack
// is pending until it is stored. Apps that are not in the map keep their health. Apps that
// are not registered, or registered as disabled, are refused. said has when a relay was
// given it, as Said returns it. It takes ownership of the first map.
func (r Request) SetAppHealth(health map[agent.ID]agent.AppHealth, said map[agent.ID]int64) []agent.Refusal {
	refused := apphealth.Refuse(health, r.session.reg.Load().Apps)
	if len(health) > 0 {
		r.changeState(func(s *agent.State) (notify bool) {
			for id, h := range health {
				was := s.AppHealth[id]
				order, ok := r.replaces(s.AppHealthOrder[id], said[id])
				notify = ok && s.SetAppHealth(id, h, order) && was != h || notify
			}
			return notify
		})
	}
	return refused
}

// SetNetwork records the agent's whole view of the network, as SetAppHealth does. It takes
// ownership of n.Regions.
func (r Request) SetNetwork(n agent.Network, said int64) {
	r.changeState(func(s *agent.State) bool {
		if order, ok := r.replaces(s.NetworkOrder, said); ok {
			s.Network, s.NetworkOrder = n, order
		}
		return false
	})
}

// changeState changes the state, publishes it, and queues it to be written. Watchers
// are notified if change returns true.
func (r Request) changeState(change func(*agent.State) (notify bool)) {
	e := r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	state := &e.activeLocked().state
	notify := change(&state.newest)
	r.fleet.publishPresenceLocked(e, r.now)
	if notify {
		r.fleet.watchers.Notify(e.id)
	}
	state.pendingAcks.Add(r.instance, r.order)
	if !state.queued {
		state.queued = true
		r.fleet.queue.AddState(e)
	}
}
