package fleet

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/index"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/ordered"
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
	began := time.Now()
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
	if f.peers != nil {
		f.pending.Followed(began) // until the first pass
	}
	f.setSizes()
	f.checkReadSizes(r.agents.Len())
	f.watchers.Notify()
	return nil
}

// load reads all by pages, so that beside the registry there is never more than a few. Rows
// of agents that are registered meanwhile are read by the first pass, from the start.
func (f *Fleet) load(ctx context.Context) (registry, error) {
	r, revision, err := f.loadRegistrations(ctx)
	if err != nil {
		return r, fmt.Errorf("read registrations: %w", err)
	}
	known := true
	sessionsRead, err := f.store.EachSession(ctx, func(page []agent.SessionRecord) error {
		now := time.Now().UnixNano()
		for i := range page {
			e := r.agents.Get(page[i].Agent)
			if e == nil {
				known = false
				continue
			}
			past := e.historyLocked()
			past.newest, past.recordedEpoch = page[i], page[i].Epoch
			past.endedAt = now // as far as is known
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("read sessions: %w", err)
	}
	if !known {
		sessionsRead = 0
	}
	known = true
	statesRead, err := f.store.EachState(ctx, func(page []agent.State) error {
		for i := range page {
			e := r.agents.Get(page[i].Agent)
			if e == nil {
				known = false
				continue
			}
			past := e.historyLocked()
			// Sessions are written behind: the state may be of a later one.
			if last := page[i].MaxEpoch(); last > past.newest.Epoch {
				past.newest = agent.SessionRecord{Agent: e.id, Epoch: last}
			}
			e.dropForeignApps(&page[i])
			past.state = kept.StateOf(&page[i])
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("read states: %w", err)
	}
	if !known {
		statesRead = 0
	}
	err = f.store.MetadataKeys(ctx, func(id agent.ID, keys []string) error {
		if e := r.agents.Get(id); e != nil && !e.reg.Load().HasMetadataKeys() {
			slices.Sort(keys)
			e.historyLocked().metadataKeys = kept.KeysOf(keys)
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("read metadata keys: %w", err)
	}
	f.revision = revision
	f.statesRead.Store(statesRead)
	f.sessionsRead.Store(sessionsRead)
	return r, nil
}

func (f *Fleet) loadRegistrations(ctx context.Context) (r registry, revision int64, err error) {
	named := &naming{at: time.Now()} // when each was named last is not stored
	labelKeys := make(map[labelKey]struct{})
	var all []*entry
	revision, err = f.store.EachRegistration(ctx, func(page agent.Registrations) error {
		if page.Complete {
			r, all = newRegistry(), nil
		}
		for i := range page.Workspaces {
			r.putWorkspace(page.Workspaces[i], labelKeys).named = named
		}
		clear(labelKeys) // all are published
		from := len(all)
		for i := range page.Agents {
			reg := &page.Agents[i]
			slices.Sort(reg.MetadataKeys)
			e := newEntry(reg.ID, r.texts.Registration(reg, r.workspaces.Get(reg.Workspace.ID).reg.Load()))
			e.named = named
			all = append(all, e)
		}
		r.index(all[from:])
		return nil
	})
	r.order = ordered.With(nil, all, compareEntries)
	return r, revision, err
}

// publishAll publishes what was loaded, with as many goroutines as there are processors.
func (f *Fleet) publishAll(r *registry) {
	start := time.Now()
	var parts errgroup.Group
	parts.SetLimit(runtime.GOMAXPROCS(0))
	for n := range index.Parts {
		parts.Go(func() error {
			f.publishPart(r, r.byLabels.Part(n))
			return nil
		})
	}
	_ = parts.Wait() // no part has an error
	f.metrics.collection.Observe(time.Since(start).Seconds())
}

// publishPart publishes workspaces, those with equal labels, and their agents. No other
// goroutine knows them.
func (f *Fleet) publishPart(r *registry, workspaces []*workspace) {
	p := publications.Get().(*publication)
	now := time.Now()
	var equal []*workspace
	for _, first := range workspaces {
		equal = r.withLabels(equal[:0], first)
		visible := visibleOf(equal)
		visible.up.labels = visible.reg.Load()
		for _, w := range equal {
			f.publishLoaded(p, w, now)
			f.queueFinishedBuildOf(w) // it may have finished while no replica could record it
		}
	}
	f.publish(p)
	publications.Put(p)
}

// publishLoaded adds a workspace that no other goroutine knows to the publication, with its
// agents, and publishes that while there is much in it.
func (f *Fleet) publishLoaded(p *publication, w *workspace, now time.Time) {
	for _, e := range w.agents {
		e.presence = f.presenceLocked(e, now)
		if at := e.presence.connection(); at.workspace != nil {
			w.up.addLocked(at, 1)
		}
		if e.presence.published {
			p.addAgentLocked(e)
			f.publishMany(p)
		}
	}
	p.addWorkspaceLocked(f, w)
	f.publishMany(p)
}

// dropForeignApps drops the health of apps that are not registered, or registered as
// disabled. The caller holds e.mu, or no other goroutine knows e.
func (e *entry) dropForeignApps(s *agent.State) {
	if len(s.AppHealth) == 0 {
		return
	}
	apps := e.registration().Apps
	for id := range s.AppHealth {
		if !slices.ContainsFunc(apps, func(a agent.App) bool { return a.ID == id && a.Health != agent.AppHealthDisabled }) {
			delete(s.AppHealth, id)
			delete(s.AppHealthOrder, id)
		}
	}
}

// dropForeignLocked drops what the agent said before it had its registration, and may not
// say any more.
func (e *entry) dropForeignLocked() {
	if e.past == nil {
		return
	}
	isDeclared := e.reg.Load().HasMetadataKeys()
	if e.active != nil {
		e.dropForeignApps(&e.active.state.newest)
		if isDeclared {
			e.active.metadataKeys = nil
		}
		return
	}
	s := e.stateLocked(&agent.State{})
	e.dropForeignApps(s)
	e.past.state = kept.StateOf(s)
	if isDeclared {
		e.past.metadataKeys = ""
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
