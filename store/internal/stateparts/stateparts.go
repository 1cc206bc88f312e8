// Package stateparts has the parts of an agent's state, its apps, and what coderd observed
// of it, as they are stored: as JSON.
package stateparts

import (
	"encoding/json"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Lifecycle is the newest one.
type Lifecycle struct {
	State     agent.LifecycleState `json:"state"`
	ChangedAt time.Time            `json:"changed_at"`
}

// Started is when the newest start began.
type Started struct {
	StartedAt time.Time `json:"started_at"`
}

// Ready is how the newest start ended. StartedAt counts if there is no row of it.
type Ready struct {
	StartedAt time.Time            `json:"started_at"`
	ReadyAt   time.Time            `json:"ready_at"`
	Result    agent.LifecycleState `json:"result"`
}

// Network is an agent's view of the network. Durations are in nanoseconds.
type Network struct {
	// A string, as SQL's JSON functions lose the precision of 64 bits.
	NodeID          uint64   `json:"node_id,string"`
	PreferredRegion int64    `json:"preferred_region"`
	Regions         []Region `json:"regions"`
}

// Region is one region of a network.
type Region struct {
	ID      int64         `json:"id"`
	Name    string        `json:"name"`
	Latency time.Duration `json:"latency"`
}

// NetworkOf returns n as it is stored.
func NetworkOf(n agent.Network) Network {
	out := Network{NodeID: n.NodeID, PreferredRegion: n.PreferredRegion, Regions: make([]Region, len(n.Regions))}
	for i, r := range n.Regions {
		out.Regions[i] = Region(r)
	}
	return out
}

// State returns the network as it is part of an agent's state.
func (n Network) State() agent.Network {
	out := agent.Network{NodeID: n.NodeID, PreferredRegion: n.PreferredRegion}
	for _, r := range n.Regions {
		out.Regions = append(out.Regions, agent.Region(r))
	}
	return out
}

// App is an app of a registration.
type App struct {
	ID          agent.ID        `json:"id"`
	Slug        string          `json:"slug"`
	DisplayName string          `json:"display_name"`
	Health      agent.AppHealth `json:"health"`
}

// observed is what coderd observed of an agent.
type observed struct {
	At        time.Time    `json:"at"`
	Status    agent.Status `json:"status"`
	Lifecycle Lifecycle    `json:"lifecycle"`
	Network   Network      `json:"network"`
}

// EncodeObservation returns an observation as text; empty: there is none.
func EncodeObservation(o *agent.Observation) (string, error) {
	if o.At.IsZero() {
		return "", nil
	}
	text, err := json.Marshal(observed{o.At, o.Status, Lifecycle(o.Lifecycle), NetworkOf(o.Network)})
	return string(text), err
}

// DecodeObservation is the inverse of EncodeObservation.
func DecodeObservation(text string) (agent.Observation, error) {
	if text == "" {
		return agent.Observation{}, nil
	}
	var o observed
	err := Decode([]byte(text), &o)
	return agent.Observation{At: o.At, Status: o.Status, Lifecycle: agent.Lifecycle(o.Lifecycle), Network: o.Network.State()}, err
}
