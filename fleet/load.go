package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Load reads the registrations, states and sessions from the store. Before its first
// success, methods that need the registrations return ErrUnavailable. After that it
// does nothing. Run calls it until it succeeds.
func (f *Fleet) Load(ctx context.Context) error {
	if err := f.lockChanges(ctx); err != nil {
		return err
	}
	defer f.unlockChanges()
	if f.Ready() == nil {
		return nil
	}
	if f.peers != nil {
		f.peers.shares.Refresh()
	}
	r, err := f.load(ctx)
	if err != nil {
		f.metrics.loadErrors.Inc()
		return fmt.Errorf("load the registrations: %w", err)
	}
	f.publishAll(&r)
	f.mu.Lock()
	f.registry, f.loaded = r, true
	f.mu.Unlock()
	f.setSizes()
	f.checkReadSizes(r.agents.Len())
	f.watchers.Notify()
	return nil
}

func (f *Fleet) load(ctx context.Context) (registry, error) {
	r := newRegistry()
	registered, err := f.store.Registrations(ctx, 0)
	if err != nil {
		return r, fmt.Errorf("read registrations: %w", err)
	}
	named := naming{at: time.Now()} // when each was named last is not stored
	// Rows of agents that are registered meanwhile are read by the first pass, from
	// the start.
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
	labelKeys := make(map[labelKey]struct{}, len(registered.Workspaces))
	for _, w := range registered.Workspaces {
		r.putWorkspace(w, labelKeys).named = named
	}
	entries := make([]*entry, 0, len(registered.Agents))
	for i := range registered.Agents {
		reg := &registered.Agents[i]
		w := r.putWorkspace(reg.Workspace, labelKeys)
		w.named = named
		slices.Sort(reg.MetadataKeys)
		e := newEntry(reg.ID, r.texts.Registration(reg, w.reg.Load()))
		e.named = named
		if len(reg.MetadataKeys) == 0 {
			e.metadataKeys = keys[e.id]
			slices.Sort(e.metadataKeys)
		}
		entries = append(entries, e)
	}
	r.add(entries)
	for _, record := range sessions {
		e := r.agents.Get(record.Agent)
		if e == nil {
			sessionsRead = 0
			continue
		}
		e.sessions.newest = record
		e.sessions.recordedEpoch = record.Epoch
		e.sessions.endedAt = time.Now() // as far as is known
	}
	for _, s := range states {
		e := r.agents.Get(s.Agent)
		if e == nil {
			statesRead = 0
			continue
		}
		e.state.newest = s
		// Sessions are written behind: the state may be of a later one.
		last := s.MaxEpoch()
		if last > e.sessions.newest.Epoch {
			e.sessions.newest = agent.SessionRecord{Agent: e.id, Epoch: last}
		}
		e.dropForeignApps()
	}
	f.revision = registered.Revision
	f.statesRead.Store(statesRead)
	f.sessionsRead.Store(sessionsRead)
	return r, nil
}

// publishAll publishes what was loaded.
func (f *Fleet) publishAll(r *registry) {
	start := time.Now()
	labelKeys := make(map[labelKey]struct{}, r.byLabels.Len())
	for w := range r.byLabels.All() {
		labelKeys[labelKeyOf(w.reg.Load())] = struct{}{}
	}
	f.electVisible(r, labelKeys)
	f.publishPresence(r.order)
	for w := range r.workspaces.All() {
		f.queueFinishedBuildOf(w) // it may have finished while no replica could record it
	}
	f.metrics.collection.Observe(time.Since(start).Seconds())
}

// dropForeignApps drops the health of apps that are not registered, or registered as
// disabled. The caller holds e.mu, or no other goroutine knows e.
func (e *entry) dropForeignApps() {
	if len(e.state.newest.AppHealth) == 0 {
		return
	}
	apps := e.registration().Apps
	for id := range e.state.newest.AppHealth {
		if !slices.ContainsFunc(apps, func(a agent.App) bool { return a.ID == id && a.Health != agent.AppHealthDisabled }) {
			delete(e.state.newest.AppHealth, id)
			delete(e.state.newest.AppHealthOrder, id)
		}
	}
}

// lockChanges acquires changeSem.
func (f *Fleet) lockChanges(ctx context.Context) error {
	select {
	case f.changeSem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another change of the registrations: %w", ctx.Err())
	}
}

func (f *Fleet) unlockChanges() { <-f.changeSem }
