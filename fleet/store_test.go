package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// memStore is a Store of one or several fleets that can be made to fail. It records its
// calls in a journal that it shares with the other fakes.
type memStore struct {
	journal *journal

	mu       sync.Mutex
	err      error
	reject   agent.ID // whose state is refused
	revision int64
	replaced bool // the next read of registrations says so, once
	regs     map[agent.ID]agent.Registration
	spaces   map[agent.ID]agent.Workspace
	// changed and removed are the revisions at which agents and workspaces were.
	changed, removed map[agent.ID]int64
	removedAt        map[agent.ID]time.Time
	removalsDelay    time.Duration // before Removals reads
	named            []storedNaming
	states           map[agent.ID]agent.State
	sessions         map[agent.ID]agent.SessionRecord
	// moved counts the writes of states and sessions, by agent.
	moved    int64
	statesAt map[agent.ID]int64
	// incarnations are those that states, or sessions, were written of, newest last.
	incarnations, sessionIncarnations []int64
	// sessionsAt is when a session was written.
	sessionsAt map[agent.ID]int64
	keys       map[agent.ID][]string
	builds     map[agent.ID]time.Time
	// buildErr fails ObserveBuilds only.
	buildErr error
	writes   int
	before   func() // called before a call, without the lock
}

// storedNaming is who was named again at a revision.
type storedNaming struct {
	agents, workspaces []agent.ID
	at                 int64
}

func newMemStore(j *journal) *memStore {
	return &memStore{
		journal:    j,
		regs:       map[agent.ID]agent.Registration{},
		spaces:     map[agent.ID]agent.Workspace{},
		changed:    map[agent.ID]int64{},
		removed:    map[agent.ID]int64{},
		removedAt:  map[agent.ID]time.Time{},
		states:     map[agent.ID]agent.State{},
		sessions:   map[agent.ID]agent.SessionRecord{},
		statesAt:   map[agent.ID]int64{},
		sessionsAt: map[agent.ID]int64{},
		keys:       map[agent.ID][]string{},
		builds:     map[agent.ID]time.Time{},
	}
}

func (s *memStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// hang has every call wait until done is closed.
func (s *memStore) hang(done <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = func() { <-done }
}

func (s *memStore) failBuilds(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buildErr = err
}

func (s *memStore) begin() error {
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	if before != nil {
		before()
	}
	s.mu.Lock()
	return s.err
}

func (s *memStore) Registrations(_ context.Context, since int64) (agent.Registrations, error) {
	err := s.begin()
	defer s.mu.Unlock()
	if s.replaced {
		since, s.replaced = 0, false
	}
	r := agent.Registrations{Revision: s.revision, Complete: since == 0}
	for id, reg := range s.regs {
		if since == 0 || s.changed[id] > since {
			reg.Workspace = s.spaces[reg.Workspace.ID]
			r.Agents = append(r.Agents, reg)
		}
	}
	for id, w := range s.spaces {
		if since == 0 || s.changed[id] > since {
			r.Workspaces = append(r.Workspaces, w)
		}
	}
	for id, at := range s.removed {
		if since == 0 || at <= since {
			continue
		}
		// An id names an agent or a workspace: those that are not there are skipped.
		r.RemovedAgents = append(r.RemovedAgents, id)
		r.RemovedWorkspaces = append(r.RemovedWorkspaces, id)
	}
	for _, n := range s.named {
		if since != 0 && n.at > since {
			r.NamedAgents = append(r.NamedAgents, n.agents...)
			r.NamedWorkspaces = append(r.NamedWorkspaces, n.workspaces...)
		}
	}
	return r, err
}

func (s *memStore) Removals(_ context.Context, within time.Duration) ([]agent.Removal, error) {
	time.Sleep(s.removalsDelay)
	err := s.begin()
	defer s.mu.Unlock()
	var removals []agent.Removal
	for id, at := range s.removedAt {
		if age := time.Since(at); age <= within {
			removals = append(removals, agent.Removal{ID: id, Age: age}, agent.Removal{ID: id, IsWorkspace: true, Age: age})
		}
	}
	return removals, err
}

func (s *memStore) EachRegistration(ctx context.Context, page func(agent.Registrations) error) (int64, error) {
	r, err := s.Registrations(ctx, 0)
	if err != nil {
		return 0, err
	}
	return r.Revision, eachRegistration(r, page)
}

// eachRegistration hands all registrations on in pages of a few, after one that is void.
func eachRegistration(r agent.Registrations, page func(agent.Registrations) error) error {
	err := page(agent.Registrations{Complete: true, Workspaces: slices.Clone(r.Workspaces[:min(1, len(r.Workspaces))])})
	if err == nil {
		err = page(agent.Registrations{Complete: true})
	}
	for some := range slices.Chunk(r.Workspaces, 2) {
		if err == nil {
			err = page(agent.Registrations{Workspaces: some})
		}
	}
	for some := range slices.Chunk(r.Agents, 3) {
		for i := range some {
			some[i].Workspace = agent.Workspace{ID: some[i].Workspace.ID}
		}
		if err == nil {
			err = page(agent.Registrations{Agents: some})
		}
		clear(some)
	}
	return err
}

func (s *memStore) MetadataKeys(_ context.Context, each func(agent.ID, []string) error) error {
	err := s.begin()
	defer s.mu.Unlock()
	for id, keys := range s.keys {
		err = errors.Join(err, each(id, slices.Clone(keys)))
	}
	return err
}

func (s *memStore) EachState(ctx context.Context, page func([]agent.State) error) (int64, error) {
	states, next, err := s.States(ctx, 0)
	return next, errors.Join(err, page(states))
}

func (s *memStore) EachSession(ctx context.Context, page func([]agent.SessionRecord) error) (int64, error) {
	records, next, err := s.Sessions(ctx, 0)
	return next, errors.Join(err, page(records))
}

func (s *memStore) States(_ context.Context, since int64) ([]agent.State, int64, error) {
	err := s.begin()
	defer s.mu.Unlock()
	var out []agent.State
	for id, st := range s.states {
		if s.statesAt[id] >= since {
			out = append(out, st.Clone())
		}
	}
	return out, s.moved, err
}

func (s *memStore) Sessions(_ context.Context, since int64) ([]agent.SessionRecord, int64, error) {
	err := s.begin()
	defer s.mu.Unlock()
	var out []agent.SessionRecord
	for id, r := range s.sessions {
		if s.sessionsAt[id] >= since {
			out = append(out, r)
		}
	}
	return out, s.moved, err
}

func (s *memStore) ApplyChange(_ context.Context, basis int64, c agent.Change) (int64, error) {
	err := s.begin()
	defer s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if basis != s.revision {
		return 0, fmt.Errorf("revision %d: %w", s.revision, agent.ErrOutdated)
	}
	s.writes++
	s.revision++
	s.named = append(s.named, storedNaming{c.NamedAgents, c.NamedWorkspaces, s.revision})
	s.journal.add("store change")
	for _, id := range c.RemovedAgents {
		for _, m := range []map[agent.ID]int64{s.changed, s.statesAt, s.sessionsAt} {
			delete(m, id)
		}
		delete(s.regs, id)
		delete(s.states, id)
		delete(s.sessions, id)
		s.removed[id], s.removedAt[id] = s.revision, time.Now()
	}
	for _, id := range c.RemovedWorkspaces {
		delete(s.spaces, id)
		s.removed[id], s.removedAt[id] = s.revision, time.Now()
	}
	put := func(w agent.Workspace) {
		s.spaces[w.ID] = w
		s.changed[w.ID] = s.revision
	}
	for _, w := range c.Workspaces {
		put(w)
	}
	for _, r := range c.Agents {
		r.Incarnation = s.revision
		if old, known := s.regs[r.ID]; known {
			r.Incarnation = old.Incarnation
		}
		s.regs[r.ID] = r
		s.changed[r.ID] = s.revision
		put(r.Workspace)
	}
	return s.revision, nil
}

func (s *memStore) SaveStates(_ context.Context, states []agent.State) (newer []agent.StoredEpoch, _ error) {
	err := s.begin()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, st := range states {
		if st.Agent == s.reject {
			return nil, fmt.Errorf("bad state: %w", agent.ErrRejected)
		}
	}
	s.writes++
	s.moved++
	for _, st := range states {
		s.incarnations = append(s.incarnations, st.Incarnation)
		if st.Incarnation != 0 && s.regs[st.Agent].Incarnation != st.Incarnation {
			newer = append(newer, agent.StoredEpoch{Agent: st.Agent})
			continue
		}
		row := s.states[st.Agent]
		row.Agent = st.Agent
		lost := agent.StoredEpoch{Agent: st.Agent}
		put := func(said, stored agent.Order, set func(agent.Order)) {
			switch {
			case said.Follows(stored):
				set(agent.Order{Epoch: said.Epoch, Sequence: said.Sequence, Said: said.Said})
			case said.Epoch != 0 && said.Epoch != stored.Epoch:
				lost.Epoch, lost.First = max(lost.Epoch, stored.Epoch), lost.First || stored.Epoch < said.Epoch
			}
		}
		put(st.LifecycleOrder, row.LifecycleOrder, func(o agent.Order) { row.Lifecycle, row.LifecycleOrder = st.Lifecycle, o })
		put(st.StartedOrder, row.StartedOrder, func(o agent.Order) { row.SetStarted(st.Startup.StartedAt, o) })
		put(st.ReadyOrder, row.ReadyOrder, func(o agent.Order) { row.SetReady(st.Startup, o) })
		row.AppHealth, row.AppHealthOrder = maps.Clone(row.AppHealth), maps.Clone(row.AppHealthOrder)
		for app, health := range st.AppHealth {
			stored := row.AppHealthOrder[app]
			put(st.AppHealthOrder[app], stored, func(o agent.Order) { row.SetAppHealth(app, health, o) })
		}
		put(st.NetworkOrder, row.NetworkOrder, func(o agent.Order) { row.Network, row.NetworkOrder = st.Network, o })
		if lost.Epoch != 0 {
			newer = append(newer, lost)
		}
		s.states[st.Agent], s.statesAt[st.Agent] = row, s.moved
	}
	return newer, nil
}

func (s *memStore) SaveSessions(_ context.Context, records []agent.SessionRecord) (before []agent.SessionRecord, err error) {
	err = s.begin()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.moved++
	for _, r := range records {
		s.sessionIncarnations = append(s.sessionIncarnations, r.Incarnation)
		if r.Incarnation != 0 && s.regs[r.Agent].Incarnation != r.Incarnation {
			continue
		}
		r.Incarnation = 0
		stored := s.sessions[r.Agent]
		stored.Agent = r.Agent
		before = append(before, stored)
		switch r.Compare(&stored) {
		case -1:
			continue
		case 0:
			r.Open, r.Reported = r.Open && stored.Open, r.Reported || stored.Reported
		}
		s.sessions[r.Agent], s.sessionsAt[r.Agent] = r, s.moved
	}
	return before, nil
}

func saveSessions(t *testing.T, s *memStore, records []agent.SessionRecord) {
	t.Helper()
	_, err := s.SaveSessions(t.Context(), records)
	require.NoError(t, err)
}

func (s *memStore) ObserveBuilds(_ context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error) {
	err = s.begin()
	defer s.mu.Unlock()
	if err := errors.Join(err, s.buildErr); err != nil {
		return nil, err
	}
	for _, id := range builds {
		if _, known := s.builds[id]; !known {
			s.builds[id] = at
			fresh = append(fresh, id)
		}
	}
	return fresh, nil
}

func (s *memStore) state(id agent.ID) agent.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.states[id]
}

func (s *memStore) epoch(id agent.ID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id].Epoch
}

func (s *memStore) writeCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *memStore) agents() []agent.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.regs))
}
