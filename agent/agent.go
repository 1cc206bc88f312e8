// Package agent holds the value types that the components share: who an agent
// is, and what it said. It imports nothing of ours and does no I/O.
package agent

import (
	"cmp"
	"errors"
	"time"
	"unsafe"

	"github.com/google/uuid"
)

// ID is the UUID of an agent, a workspace, a build or an app.
type ID = uuid.UUID

// ErrUnknownToken is returned for a token of no registered agent.
var ErrUnknownToken = errors.New("unknown token")

// ErrRejected is wrapped by errors of a store that writing again cannot cure:
// the database refuses the data itself. The caller isolates the row.
var ErrRejected = errors.New("rejected by the database")

// Identity is what an agent's series are labelled by and kept under. It comes
// from the agent's registration, never from the agent.
type Identity struct {
	Username      string
	WorkspaceName string
	AgentName     string
	TemplateName  string
	// CreatedAt decides between two agents with equal labels: the newer is
	// served.
	CreatedAt time.Time
}

// Equal compares the identities.
func (i Identity) Equal(other Identity) bool {
	return i.Username == other.Username &&
		i.WorkspaceName == other.WorkspaceName &&
		i.AgentName == other.AgentName &&
		i.TemplateName == other.TemplateName &&
		i.CreatedAt.Equal(other.CreatedAt)
}

// Instance is one process of an agent, chosen at random by it.
type Instance [16]byte

// Order says which of two statements of one agent is newer. Times do not.
type Order struct {
	// Epoch of the agent's session, in nanoseconds since 1970 when it opened,
	// but always above the epochs before it.
	Epoch int64
	// Sequence of the request within the agent's instance; from 1.
	Sequence int64

	// Basis and Previous are what the session knew when it opened. They are not
	// compared, and stores do not return them. Clocks of replicas differ: a lower epoch
	// that the session did not know of may be of a session that began later.
	//
	// Basis is the highest epoch of a session of the agent that was known to be stored;
	// 1 if none was. With 0, what is stored under any lower epoch is older.
	Basis int64
	// Previous is the epoch of the session before, stored or not; 0: none.
	Previous int64

	// Said is when it was said, in nanoseconds since 1970; 0: not known. Only Replaces
	// compares it. Stores return that of a part of a state.
	Said int64
}

// Compare returns -1, 0 or 1 as o is older than, equal to or newer than p.
func (o Order) Compare(p Order) int {
	if o.Epoch != p.Epoch {
		return cmp.Compare(o.Epoch, p.Epoch)
	}
	return cmp.Compare(o.Sequence, p.Sequence)
}

// Follows reports whether what has the order o may take the place of what is stored
// with another one. It may if it is newer, and its session began after that of the
// other.
func (o Order) Follows(stored Order) bool {
	return o.Compare(stored) > 0 && (o.Epoch == stored.Epoch || o.knew(stored.Epoch))
}

// Replaces reports whether what was said before its session opened takes the place of
// the newest known. That may have been said later, to another relay of the agent. The
// times decide then. What the relay's session before said is older: that is Previous.
func (o Order) Replaces(newest Order) bool {
	return o.Compare(newest) > 0 && (newest.Epoch == o.Previous || o.Said >= cmp.Or(newest.Said, newest.Epoch))
}

func (o Order) knew(epoch int64) bool { return o.Basis == 0 || epoch <= o.Basis || epoch == o.Previous }

// Metadata is the value of one metadata key of one agent.
type Metadata struct {
	Agent ID
	Key   string
	Value string
	// Error is why there is no value; empty if there is one.
	Error string
	// CollectedAt is when the service received the value, or when a relay was given it
	// before its session opened. Late is true then. A late value replaces no stored one
	// that was collected later, but for one of the session Order.Previous.
	CollectedAt time.Time
	Late        bool
	Order       Order
	// Incarnation of the registration that the agent had when it said this; a store
	// leaves out what is of another one than it has. 0: it does not matter. It is not
	// kept.
	Incarnation int64
}

// metadataBytes is what a value takes beside its texts.
const metadataBytes = int(unsafe.Sizeof(Metadata{}))

// Bytes returns what the value takes in memory.
func (m *Metadata) Bytes() int {
	return metadataBytes + len(m.Key) + len(m.Value) + len(m.Error)
}
