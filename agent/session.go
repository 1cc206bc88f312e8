package agent

// StoredEpoch is the epoch that a written value of an agent lost against.
type StoredEpoch struct {
	Agent ID
	// Key of a metadata value; empty: it is the agent's state.
	Key string
	// Epoch of what is stored in its place; 0: the agent is registered as another
	// incarnation, or is not any more.
	Epoch int64
	// First is true if Epoch is below that of what lost, whose session did not know
	// of it: it was stored first.
	First bool
}

// Session is one connection of an agent to this service.
type Session struct {
	// Epoch is above that of every earlier session of the agent.
	Epoch int64
	// Instance is the agent's process.
	Instance Instance
	// First is true if this is the instance's first session anywhere: nothing
	// that it reports was counted before. If it is relayed, the agent reported
	// nothing in any session.
	First bool
	// Relayed is true if Instance is a relay. What it reports was counted by the
	// agent's process, which may go on through another relay.
	Relayed bool
	// Moved is true if the instance may have had a session on another replica since
	// its last one here. That replica counted what it reported there.
	Moved bool
	// Unknown is true if this replica does not know what it received of the instance
	// before: it may receive that again.
	Unknown bool
}
