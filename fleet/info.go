package fleet

import (
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/departed"
	"github.com/coder/agentstatsd/fleet/internal/ended"
	"github.com/coder/agentstatsd/fleet/internal/observations"
)

// Info is a copy of what the fleet knows of an agent.
type Info struct {
	// Registration is shared and must not be changed.
	Registration *agent.Registration
	// Connected is true if the agent has a session on any replica.
	Connected bool
	// Remote is true if another replica has that session.
	Remote bool
	// Relayed is true if it is relayed.
	Relayed bool
	// Published is true if this replica serves the agent's state.
	Published bool
	// Session is its newest one on any replica; zero: there was none.
	Session agent.SessionRecord
	// Status equals that of the published series. It follows time within a second.
	Status agent.Status
	// LastSeen is zero if the agent never connected to this process.
	LastSeen time.Time
	// State is the one that is served, durable or not. Its maps are copies.
	State agent.State
}

// List returns at most limit agents with ids above after, ordered by id. The zero
// ID is below all.
func (f *Fleet) List(after agent.ID, limit int) []Info {
	f.mu.RLock()
	order := f.registry.order
	f.mu.RUnlock()
	from, found := slices.BinarySearchFunc(order, after, compareEntry)
	if found {
		from++
	}
	page := order[from:min(len(order), from+limit)]
	infos := make([]Info, len(page))
	for i, e := range page {
		infos[i] = f.info(e)
	}
	return infos
}

// All iterates over the registered agents with their statuses, in the order of their ids.
// A registration is valid until yield returns: who keeps it clones it.
func (f *Fleet) All(yield func(*agent.Registration, agent.Status) bool) {
	f.mu.RLock()
	order := f.registry.order
	f.mu.RUnlock()
	var reg agent.Registration
	for _, e := range order {
		e.mu.Lock()
		registered, status := e.phase == phaseRegistered, e.presence.status.Value()
		e.mu.Unlock()
		if !registered {
			continue
		}
		e.reg.Load().CopyTo(&reg, e.id)
		if !yield(&reg, status) {
			return
		}
	}
}

// Departed is an agent that was removed.
type Departed = departed.Agent

// Departed returns the agents that were removed last, at most 5,000, the oldest first.
func (f *Fleet) Departed() []Departed { return f.departed.List() }

// Agent returns one agent. Errors: ErrUnknownAgent; ErrUnavailable while the
// registrations are not loaded.
func (f *Fleet) Agent(id agent.ID) (Info, error) {
	e, err := f.entry(id)
	if err != nil {
		return Info{}, err
	}
	return f.info(e), nil
}

// SessionDetails are a session that an agent has, or had, at this replica.
type SessionDetails = ended.Session

// Sessions returns the session that an agent has here, nil: none, and at most ten that
// have ended, the newest first.
func (f *Fleet) Sessions(id agent.ID) (open *SessionDetails, before []SessionDetails) {
	e, err := f.entry(id)
	if err != nil {
		return nil, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if live := e.liveLocked(); live != nil {
		details := live.details()
		open = &details
	}
	return open, f.ended.Of(id)
}

// details returns what the session is while it is open.
func (s *Session) details() SessionDetails {
	progress := s.Progress()
	return SessionDetails{
		Epoch: s.info.Epoch, Instance: s.info.Instance, Version: s.hello.Version, Relayed: s.hello.Relayed,
		OpenedAt: s.openedAt, Received: progress.Received, Durable: progress.Durable,
	}
}

// Registration returns that of an agent, which must not be changed; nil: there is none. It
// is a copy, unless the agent has a session here.
func (f *Fleet) Registration(id agent.ID) *agent.Registration {
	if e, err := f.entry(id); err == nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.registrationLocked()
	}
	return nil
}

func (f *Fleet) info(e *entry) Info {
	e.mu.Lock()
	defer e.mu.Unlock()
	live, past := e.liveLocked() != nil, e.history()
	remote := !live && f.connectedRemotelyLocked(e)
	connected := live || remote
	reg := e.registrationLocked()
	return Info{
		Registration: reg,
		Connected:    connected,
		Remote:       remote,
		Relayed:      connected && past.newest.Relayed,
		Published:    e.presence.published,
		Session:      past.newest,
		Status:       e.presence.status.Value(),
		LastSeen:     timeOf(past.lastSeen),
		State:        observations.State(e.stateLocked(&agent.State{}), &reg.Observed, e.presence.observed).Clone(),
	}
}

// Watch registers notify. It is called with the agents that were registered, changed
// or removed, or that have another status, lifecycle or app health. With nil, all
// agents are to be read again. What is read after a notification is at least as new
// as the notification. notify must not block, nor call the fleet. After cancel
// returns it is not called any more.
func (f *Fleet) Watch(notify func(ids []agent.ID)) (cancel func()) { return f.watchers.Add(notify) }
