package agent

// StoredEpoch is the epoch of what is stored of an agent, above that of what was to
// be written in its place.
type StoredEpoch struct {
	Agent ID
	// Key of a metadata value; empty: it is the agent's state.
	Key   string
	Epoch int64
}

// Session is one connection of an agent to this service.
type Session struct {
	// Epoch is above that of every earlier session of the agent.
	Epoch int64
	// Instance is the agent's process.
	Instance Instance
	// First is true if this is the instance's first session anywhere: nothing
	// that it reports was counted before.
	First bool
	// Elsewhere is true if the instance may have had a session on another replica
	// since its last one here: what it counted meanwhile was counted there.
	Elsewhere bool
}
