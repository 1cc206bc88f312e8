package client

import (
	"sync"
	"time"

	"github.com/google/uuid"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// RelayedAgent is one connection of an agent to coderd. Its methods do not block. After
// Disconnect they do nothing, nor do those of nil and of the zero value. So what Connect
// returns beside an error may be used. Errors say what is not relayed, and are no reason
// to end the connection.
type RelayedAgent struct {
	relays *Relays // nil: nothing is relayed
	relay  *keptRelay
	id     uuid.UUID

	mu           sync.Mutex
	disconnected bool // guarded by mu
}

// use calls f with the agent, unless the connection has ended, or is no agent's.
func (a *RelayedAgent) use(f func(*Agent) error) error {
	if a == nil || a.relays == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.disconnected {
		return nil
	}
	return f(a.relay.agent)
}

// Report is as Agent.Report.
func (a *RelayedAgent) Report(stats *agentstatsv1.Stats) {
	_ = a.use(func(agent *Agent) error { agent.Report(stats); return nil })
}

// UpdateMetadata is as Agent.UpdateMetadata.
func (a *RelayedAgent) UpdateMetadata(entries ...Metadata) error {
	return a.use(func(agent *Agent) error { return agent.UpdateMetadata(entries...) })
}

// SetLifecycle is as Agent.SetLifecycle. The zero time is now.
func (a *RelayedAgent) SetLifecycle(state agentstatsv1.Lifecycle_State, changedAt time.Time) {
	if changedAt.IsZero() {
		changedAt = time.Now()
	}
	_ = a.use(func(agent *Agent) error { agent.SetLifecycle(state, changedAt); return nil })
}

// RestoreLifecycle is SetLifecycle with what coderd has stored of the agent, from before
// the connection. It does nothing if this relay was told a state of that time or later,
// or if the time is zero. If the service has a later one, that stays.
func (a *RelayedAgent) RestoreLifecycle(state agentstatsv1.Lifecycle_State, changedAt time.Time) {
	_ = a.use(func(agent *Agent) error { agent.restoreLifecycle(state, changedAt); return nil })
}

// SetAppHealth is as Agent.SetAppHealth.
func (a *RelayedAgent) SetAppHealth(appID uuid.UUID, health agentstatsv1.AppHealth) error {
	return a.use(func(agent *Agent) error { return agent.SetAppHealth(appID, health) })
}

// SetNetwork is as Agent.SetNetwork.
func (a *RelayedAgent) SetNetwork(network *agentstatsv1.Network) error {
	return a.use(func(agent *Agent) error { return agent.SetNetwork(network) })
}

// Disconnect ends the connection. It is safe to repeat. The agent counts as connected
// until what it said is acked. Its series stay until their TTL, or its next connection,
// to whichever coderd.
func (a *RelayedAgent) Disconnect() {
	if a == nil || a.relays == nil {
		return
	}
	a.mu.Lock()
	again := a.disconnected
	a.disconnected = true
	a.mu.Unlock()
	if !again {
		a.relays.disconnect(a.id, a.relay)
	}
}
