package agent

import (
	"slices"
	"time"
)

// Observation is the state of an agent as coderd knew it at a moment.
type Observation struct {
	// At is the moment; zero: there is none.
	At     time.Time
	Status Status
	// Lifecycle has no State if that was not known.
	Lifecycle Lifecycle
	Network   Network
}

// Equal compares the observations.
func (o *Observation) Equal(other *Observation) bool {
	return o.At.Equal(other.At) && o.SameState(other)
}

// SameState compares what was observed, whenever it was.
func (o *Observation) SameState(other *Observation) bool {
	return o.Status == other.Status &&
		o.Lifecycle.State == other.Lifecycle.State && o.Lifecycle.ChangedAt.Equal(other.Lifecycle.ChangedAt) &&
		o.Network.NodeID == other.Network.NodeID && o.Network.PreferredRegion == other.Network.PreferredRegion &&
		slices.Equal(o.Network.Regions, other.Network.Regions)
}

// WasConnected reports whether the agent had connected by then.
func (o *Observation) WasConnected() bool {
	return o.Status == StatusConnected || o.Status == StatusDisconnected
}
