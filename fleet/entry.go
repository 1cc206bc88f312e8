package fleet

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/budget"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/metadatakeys"
	"github.com/coder/agentstatsd/fleet/internal/pendingacks"
)

// phase is where an agent is in its removal: see startRemoval.
type phase uint8

const (
	phaseRegistered phase = iota
	phaseRemoving         // the database does not have the removal yet
	phaseRemoved          // nothing of the entry is used any more
)

// entry is one registered agent. Most agents have no session here, and many never had one
// anywhere: what only others need is behind pointers.
//
//	unknown --a session or state is read--> past --Connect--> past and active
//	   |                                     ^---------------scan-----/
//	   \--Connect--> past and active
type entry struct {
	id agent.ID

	// The registry: register.go, registry.go.

	// reg is replaced under mu, never changed in place.
	reg   atomic.Pointer[kept.Registration]
	named *naming // shared; guarded by Fleet.mu

	// requestMu is held while a request is handled, while a session opens and while
	// the agent is removed. So a request is handled wholly before them, or not at all.
	requestMu sync.Mutex

	mu sync.Mutex
	// The rest is guarded by mu.

	workspace *workspace
	past      *history  // nil: no session of it is known, and no state
	active    *activity // nil: nothing happens to it here
	phase     phase
	presence  presence // presence.go: as last published
}

// history is what is known of an agent that has, or had, sessions: session.go, sessions.go,
// outdated.go.
type history struct {
	newest agent.SessionRecord // on any replica; zero: there never was one
	// endedEpoch is that of the last session on this replica, which has ended, while newest
	// is another replica's; 0: there was none.
	endedEpoch int64
	// storedEpoch is the highest epoch known to be stored of its values. recordedEpoch is
	// the highest one known to be stored of its sessions.
	storedEpoch, recordedEpoch int64
	// Nanoseconds since 1970; 0: never. endedAt is since when the agent had no session, or
	// has one.
	lastSeen, endedAt int64
	traffic           Traffic     // traffic.go
	lastReport        *lastReport // guarded by requestMu; nil: none was handled here
	unreported        bool        // guarded by requestMu: it has reported nothing, in any session known here
	seriesRetained    bool        // the series outlast the session, for a reconnect
	unwritten         uint8       // scans: see countUnwrittenLocked

	// While the agent is not active: its state and metadata keys.
	state        kept.State
	metadataKeys kept.Keys
}

// activity is what is needed of an agent that has a session here, or had one lately.
type activity struct {
	live         *Session    // nil: none
	instances    []*instance // those without a session first, oldest first
	metadataKeys metadatakeys.Keys
	budget       budget.Budget // limits.go
	state        state
}

// state is the agent's state on its way to the database: request.go, write.go,
// follow.go.
type state struct {
	newest        agent.State
	lifecycleFrom agent.Instance // who said the newest lifecycle; zero: not known
	queued        bool           // in Fleet.queue
	pendingAcks   pendingAcks    // of sequences that newest has and the database may not
}

type pendingAcks = pendingacks.List[*instance]

func newEntry(id agent.ID, reg *kept.Registration) *entry {
	e := &entry{id: id}
	e.reg.Store(reg)
	return e
}

// history returns a copy of what is known of the agent's sessions. The caller holds e.mu.
func (e *entry) history() history {
	if e.past == nil {
		return history{}
	}
	return *e.past
}

// historyLocked returns what is known of the agent's sessions, to be changed.
func (e *entry) historyLocked() *history {
	if e.past == nil {
		e.past = &history{}
	}
	return e.past
}

// activeLocked returns the agent's activity, to be changed.
func (e *entry) activeLocked() *activity {
	if e.active == nil {
		past := e.historyLocked()
		e.active = &activity{state: state{newest: past.state.Value(e.id)}, metadataKeys: past.metadataKeys.Value()}
		past.state, past.metadataKeys = "", ""
	}
	return e.active
}

// releaseLocked releases the activity of an agent without a session here, if nothing of it
// matters any more.
func (e *entry) releaseLocked(now time.Time, limits *budget.Limits) {
	a := e.active
	if len(a.instances) > 0 || a.state.queued || len(a.state.pendingAcks) > 0 || !a.budget.IsUnused(now, limits) {
		return
	}
	e.past.state, e.past.metadataKeys = kept.StateOf(&a.state.newest), kept.KeysOf(a.metadataKeys)
	e.active = nil
}

// timeOf returns the time of nanoseconds since 1970; 0: the zero time.
func timeOf(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

// liveLocked returns the agent's session here; nil: none.
func (e *entry) liveLocked() *Session {
	if e.active == nil {
		return nil
	}
	return e.active.live
}

// instancesLocked returns a copy of the list of the instances that are known here.
func (e *entry) instancesLocked() []*instance {
	if e.active == nil {
		return nil
	}
	return slices.Clone(e.active.instances)
}

// pendingAcksLocked returns a copy of the list of acks that wait for the agent's state.
func (e *entry) pendingAcksLocked() pendingAcks {
	if e.active == nil {
		return nil
	}
	return slices.Clone(e.active.state.pendingAcks)
}

// stateLocked returns the agent's newest state, which must not be changed. While the agent is
// not active it sets s, and returns that.
func (e *entry) stateLocked(s *agent.State) *agent.State {
	switch {
	case e.active != nil:
		return &e.active.state.newest
	case e.past != nil:
		*s = e.past.state.Value(e.id)
	default:
		*s = agent.State{Agent: e.id}
	}
	return s
}

// forgetInstancesLocked forgets all instances, and acks that wait.
func (e *entry) forgetInstancesLocked() {
	if e.active != nil {
		e.active.instances, e.active.state.pendingAcks = nil, nil
	}
}

// registration returns a copy of the agent's registration.
func (e *entry) registration() *agent.Registration { return e.reg.Load().Value(e.id) }

// registrationLocked returns the agent's registration, which must not be changed.
func (e *entry) registrationLocked() *agent.Registration {
	if s := e.liveLocked(); s != nil {
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
