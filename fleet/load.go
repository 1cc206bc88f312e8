package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Load reads what the store knows. Until it has succeeded once, every method
// that needs the registrations returns ErrUnavailable; after that it does
// nothing. Run repeats it until then.
func (f *Fleet) Load(ctx context.Context) error {
	if err := f.lockChanges(ctx); err != nil {
		return err
	}
	defer f.unlockChanges()
	if f.Ready() == nil {
		return nil
	}
	f.checkStanding()
	r, err := f.load(ctx)
	if err != nil {
		f.metrics.loadErrors.Inc()
		return fmt.Errorf("load the registrations: %w", err)
	}
	f.presentAll(&r)
	f.mu.Lock()
	f.roster, f.loaded = r, true
	f.mu.Unlock()
	f.setSizes()
	f.noteRead(len(r.agents))
	f.news.tell()
	return nil
}

func (f *Fleet) load(ctx context.Context) (roster, error) {
	r := newRoster()
	registered, err := f.store.Registrations(ctx, 0)
	if err != nil {
		return r, fmt.Errorf("read registrations: %w", err)
	}
	// Those of agents that others register meanwhile are read when they are
	// followed, again from the start.
	states, statesRead, err := f.store.States(ctx, 0)
	if err != nil {
		return r, fmt.Errorf("read states: %w", err)
	}
	sessions, sessionsRead, err := f.store.Sessions(ctx, 0)
	if err != nil {
		return r, fmt.Errorf("read sessions: %w", err)
	}
	keys, err := f.store.MetadataKeys(ctx)
	if err != nil {
		return r, fmt.Errorf("read metadata keys: %w", err)
	}
	faces := make(map[faceKey]struct{}, len(registered.Workspaces))
	for _, w := range registered.Workspaces {
		r.putWorkspace(w, faces)
	}
	entries := make([]*entry, 0, len(registered.Agents))
	for i := range registered.Agents {
		reg := &registered.Agents[i]
		r.putWorkspace(reg.Workspace, faces)
		slices.Sort(reg.MetadataKeys)
		e := newEntry(reg)
		if len(reg.MetadataKeys) == 0 {
			e.keys = keys[e.id]
			slices.Sort(e.keys)
		}
		entries = append(entries, e)
	}
	r.add(entries)
	for _, record := range sessions {
		e := r.agents[record.Agent]
		if e == nil {
			sessionsRead = 0
			continue
		}
		e.newest = record
		e.recorded = record.Epoch
	}
	for _, s := range states {
		e := r.agents[s.Agent]
		if e == nil {
			statesRead = 0
			continue
		}
		e.state = s
		// Sessions are written behind: the state may know of a later one.
		last := s.MaxEpoch()
		if last > e.newest.Epoch {
			e.newest = agent.SessionRecord{Agent: e.id, Epoch: last}
		}
		e.recorded = max(e.recorded, last)
		e.dropForeignApps()
	}
	f.revision = registered.Revision
	f.statesRead.Store(statesRead)
	f.sessionsRead.Store(sessionsRead)
	return r, nil
}

// presentAll makes known what was loaded.
func (f *Fleet) presentAll(r *roster) {
	start := time.Now()
	faces := make(map[faceKey]struct{}, len(r.faces))
	for face := range r.faces {
		faces[face] = struct{}{}
	}
	f.elect(r, faces)
	f.present(r.order)
	for _, w := range r.workspaces {
		f.finishBuildOf(w) // it may have been while nobody could record it
	}
	f.metrics.collection.Observe(time.Since(start).Seconds())
}

func newEntry(reg *agent.Registration) *entry {
	e := &entry{id: reg.ID, state: agent.State{Agent: reg.ID}}
	e.reg.Store(reg)
	return e
}

// dropForeignApps forgets the health of apps that the registration does not have
// (any more), or has as disabled. The caller holds e.mu, or is the only one who knows e.
func (e *entry) dropForeignApps() {
	apps := e.reg.Load().Apps
	for id := range e.state.AppHealth {
		if !slices.ContainsFunc(apps, func(a agent.App) bool { return a.ID == id && a.Health != agent.AppHealthDisabled }) {
			delete(e.state.AppHealth, id)
			delete(e.state.AppHealthOrder, id)
		}
	}
}

// lockChanges waits for the turn to change the registrations.
func (f *Fleet) lockChanges(ctx context.Context) error {
	select {
	case f.changing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another change of the registrations: %w", ctx.Err())
	}
}

func (f *Fleet) unlockChanges() { <-f.changing }
