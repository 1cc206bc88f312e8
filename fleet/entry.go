package fleet

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/budget"
	"github.com/coder/agentstatsd/fleet/internal/kept"
)

// phase is where an agent is in its removal: see startRemoval.
type phase int

const (
	phaseRegistered phase = iota
	phaseRemoving         // the database does not have the removal yet
	phaseRemoved          // nothing of the entry is used any more
)

// entry is one registered agent. Its fields are grouped by the files whose code
// writes them, and by the lock that guards them.
type entry struct {
	id agent.ID

	// The registry: register.go, registry.go.

	// reg is replaced under mu, never changed in place.
	reg   atomic.Pointer[kept.Registration]
	named naming // guarded by Fleet.mu

	// requestMu is held while a request is handled, while a session opens and while
	// the agent is removed. So a request is handled wholly before them, or not at all.
	requestMu sync.Mutex
	// Guarded by requestMu.

	lastReport lastReport
	unreported bool // it has reported nothing, in any session known here

	mu sync.Mutex
	// The rest is guarded by mu.

	// The registry again.
	phase     phase
	workspace *workspace

	sessions     sessions
	metadataKeys []string      // request.go: sorted; of an agent whose template declares none
	budget       budget.Budget // limits.go
	traffic      Traffic       // traffic.go
	state        state
	presence     presence // presence.go: as last published
}

// sessions are the sessions of an agent: session.go, sessions.go, outdated.go.
type sessions struct {
	live   *Session            // on this replica; nil: none
	newest agent.SessionRecord // on any replica; zero: there never was one
	// endedEpoch is that of the last session on this replica, which has ended, while newest
	// is another replica's; 0: there was none.
	endedEpoch int64
	// storedEpoch is the highest epoch known to be stored of its values. recordedEpoch is
	// the highest one known to be stored of its sessions.
	storedEpoch, recordedEpoch int64
	lastSeen                   time.Time
	endedAt                    time.Time   // since then the agent had no session, or has one; zero: it never had
	instances                  []*instance // those without a session first, oldest first
	seriesRetained             bool        // the series outlast the session, for a reconnect
	unwritten                  uint8       // scans: see countUnwrittenLocked
}

// state is the agent's state on its way to the database: request.go, write.go,
// follow.go.
type state struct {
	newest        agent.State
	lifecycleFrom agent.Instance // who said the newest lifecycle; zero: not known
	queued        bool           // in Fleet.queue
	pendingAcks   []pendingAck   // of sequences that newest has and the database may not
}

func newEntry(id agent.ID, reg *kept.Registration) *entry {
	e := &entry{id: id, state: state{newest: agent.State{Agent: id}}}
	e.reg.Store(reg)
	return e
}

// registration returns a copy of the agent's registration.
func (e *entry) registration() *agent.Registration { return e.reg.Load().Value(e.id) }

// registrationLocked returns the agent's registration, which must not be changed.
func (e *entry) registrationLocked() *agent.Registration {
	if s := e.sessions.live; s != nil {
		return s.reg.Load()
	}
	return e.registration()
}

// availableLocked returns nil if the agent can have sessions now.
func (e *entry) availableLocked() error {
	switch e.phase {
	case phaseRemoved:
		return ErrUnknownAgent
	case phaseRemoving:
		return ErrUnavailable
	}
	return nil
}

func compareEntry(e *entry, id agent.ID) int { return bytes.Compare(e.id[:], id[:]) }

func compareEntries(a, b *entry) int { return compareEntry(a, b.id) }
