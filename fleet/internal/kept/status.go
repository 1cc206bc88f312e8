package kept

import (
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// Status is an agent.Status in a byte. The zero value is the empty status, as are those
// that are not known.
type Status uint8

var statuses = [...]agent.Status{"", agent.StatusConnecting, agent.StatusConnected, agent.StatusDisconnected, agent.StatusTimeout}

// StatusOf returns what is kept of a status.
func StatusOf(s agent.Status) Status { return Status(max(0, slices.Index(statuses[:], s))) }

// Value returns the status.
func (s Status) Value() agent.Status { return statuses[s] }
