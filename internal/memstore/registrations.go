package memstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// ApplyChange is as in store.Store.
func (s *Store) ApplyChange(ctx context.Context, basis int64, c agent.Change) (revision int64, err error) {
	const doing = "change registrations"
	workspaces, agents, err := storedChange(c)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	err = s.run(ctx, transaction{doing: doing, apply: func(t *tables, _ int64) error {
		if t.revision != basis {
			return fmt.Errorf("since revision %d: %w", basis, agent.ErrOutdated)
		}
		t.revision++
		before := len(t.removed)
		for _, id := range c.RemovedAgents {
			t.removeAgent(id)
		}
		for _, id := range c.RemovedWorkspaces {
			t.removeWorkspace(id)
		}
		gone := agentsOf(t.removed[before:])
		t.forgetRemovals(s.opts.RemovalsKept)
		for _, w := range workspaces {
			t.workspaces[w.ID] = workspaceRow{w, t.revision}
		}
		var added []agent.ID
		for _, r := range agents {
			r.Incarnation = t.revision
			if old, known := t.agents[r.ID]; known {
				r.Incarnation = old.Incarnation
			} else {
				added = append(added, r.ID)
			}
			t.agents[r.ID] = agentRow{r, t.revision}
			t.forgetApps(&r)
		}
		if len(c.NamedAgents)+len(c.NamedWorkspaces) > 0 {
			t.named = append(t.named, naming{slices.Clone(c.NamedAgents), slices.Clone(c.NamedWorkspaces), t.revision})
			t.forgetNamed(s.opts.NamedKept)
		}
		if s.db.changed != nil {
			s.db.changed(ctx, gone, added)
		}
		return nil
	}})
	if err != nil {
		return 0, err
	}
	return basis + 1, nil
}

// storedChange returns what c writes, in order: of equal ids the last counts.
func storedChange(c agent.Change) ([]agent.Workspace, []agent.Registration, error) {
	agents := slices.Clone(c.Agents)
	workspaces := slices.Clone(c.Workspaces)
	for i := range agents {
		workspaces = append(workspaces, agents[i].Workspace)
	}
	var err error
	for i := range workspaces {
		if workspaces[i].Build.CreatedAt, err = stored(workspaces[i].Build.CreatedAt); err != nil {
			return nil, nil, err
		}
	}
	for i := range agents {
		if agents[i].CreatedAt, err = stored(agents[i].CreatedAt); err != nil {
			return nil, nil, err
		}
		if len(agents[i].MetadataKeys) == 0 {
			agents[i].MetadataKeys = nil
		}
	}
	return workspaces, agents, nil
}

// agentsOf returns the agents among removals.
func agentsOf(removed []removal) (ids []agent.ID) {
	for _, r := range removed {
		if !r.workspace {
			ids = append(ids, r.id)
		}
	}
	return ids
}

// removeAgent removes the agent with all that is kept of it.
func (t *tables) removeAgent(id agent.ID) {
	if _, known := t.agents[id]; !known {
		return
	}
	t.removed = append(t.removed, removal{id: id, revision: t.revision, at: time.Now()})
	delete(t.agents, id)
	delete(t.metadata, id)
	delete(t.states, id)
	delete(t.sessions, id)
}

// removeWorkspace removes the workspace with its agents.
func (t *tables) removeWorkspace(id agent.ID) {
	if _, known := t.workspaces[id]; !known {
		return
	}
	for _, a := range sortedKeys(t.agents) {
		if t.agents[a].Workspace.ID == id {
			t.removeAgent(a)
		}
	}
	t.removed = append(t.removed, removal{workspace: true, id: id, revision: t.revision, at: time.Now()})
	delete(t.workspaces, id)
}

// forgetRemovals forgets the oldest removals but so many.
func (t *tables) forgetRemovals(kept int) {
	if n := len(t.removed) - kept; n > 0 {
		t.removalsAfter = t.removed[n-1].revision
		t.removed = slices.Clone(t.removed[n:])
	}
}

// forgetNamed forgets the oldest namings, so that at most so many ids stay.
func (t *tables) forgetNamed(kept int) {
	for i := len(t.named) - 1; i >= 0; i-- {
		kept -= len(t.named[i].agents) + len(t.named[i].workspaces)
		if kept < 0 {
			t.namedAfter = t.named[i].revision
			t.named = slices.Clone(t.named[i+1:])
			return
		}
	}
}

// Removals is as in store.Store.
func (s *Store) Removals(ctx context.Context, within time.Duration) ([]agent.Removal, error) {
	var removals []agent.Removal
	err := s.run(ctx, transaction{doing: "read removals", prepare: func(t *tables) error {
		removals = nil
		newest := make(map[agent.Removal]int)
		for _, r := range t.removed {
			key := agent.Removal{ID: r.id, IsWorkspace: r.workspace}
			age := time.Since(r.at)
			if i, again := newest[key]; again {
				removals[i].Age = age
			} else if age <= within {
				newest[key] = len(removals)
				removals = append(removals, agent.Removal{ID: r.id, IsWorkspace: r.workspace, Age: age})
			}
		}
		return nil
	}})
	return removals, err
}

// Registrations is as in store.Store.
func (s *Store) Registrations(ctx context.Context, since int64) (agent.Registrations, error) {
	var registrations agent.Registrations
	err := s.run(ctx, transaction{doing: "read registrations", prepare: func(t *tables) error {
		registrations = t.registrations(since)
		return nil
	}})
	if err != nil {
		return agent.Registrations{}, err
	}
	return registrations, nil
}

// EachRegistration is as in store.Store.
func (s *Store) EachRegistration(ctx context.Context, page func(agent.Registrations) error) (revision int64, err error) {
	r, err := s.Registrations(ctx, 0)
	if err != nil {
		return 0, err
	}
	if err := page(agent.Registrations{Revision: r.Revision, Complete: true}); err != nil {
		return 0, err
	}
	err = inPages(r.Workspaces, func(some []agent.Workspace) error {
		return page(agent.Registrations{Revision: r.Revision, Workspaces: some})
	})
	if err != nil {
		return 0, err
	}
	for i := range r.Agents {
		r.Agents[i].Workspace = agent.Workspace{ID: r.Agents[i].Workspace.ID}
	}
	err = inPages(r.Agents, func(some []agent.Registration) error {
		return page(agent.Registrations{Revision: r.Revision, Agents: some})
	})
	return r.Revision, err
}

func (t *tables) registrations(since int64) agent.Registrations {
	registrations := agent.Registrations{
		Revision: t.revision,
		Complete: since < max(t.removalsAfter, t.namedAfter) || since > t.revision || since == 0,
	}
	if registrations.Complete {
		since = 0
	}
	for _, id := range sortedKeys(t.workspaces) {
		if w := t.workspaces[id]; w.revision > since {
			registrations.Workspaces = append(registrations.Workspaces, w.Workspace)
		}
	}
	for _, id := range sortedKeys(t.agents) {
		if r := t.agents[id]; r.revision > since {
			r.Workspace = t.workspaces[r.Workspace.ID].Workspace
			r.Apps = slices.Clone(r.Apps)
			r.MetadataKeys = slices.Clone(r.MetadataKeys)
			registrations.Agents = append(registrations.Agents, r.Registration)
		}
	}
	if registrations.Complete {
		return registrations
	}
	for _, r := range t.removed {
		if r.revision <= since {
			continue
		}
		if r.workspace {
			if _, back := t.workspaces[r.id]; !back {
				registrations.RemovedWorkspaces = append(registrations.RemovedWorkspaces, r.id)
			}
		} else if _, back := t.agents[r.id]; !back {
			registrations.RemovedAgents = append(registrations.RemovedAgents, r.id)
		}
	}
	slices.SortFunc(registrations.RemovedAgents, compareIDs)
	slices.SortFunc(registrations.RemovedWorkspaces, compareIDs)
	registrations.RemovedAgents = slices.Compact(registrations.RemovedAgents)
	registrations.RemovedWorkspaces = slices.Compact(registrations.RemovedWorkspaces)
	for _, n := range t.named {
		if n.revision <= since {
			continue
		}
		for _, id := range n.agents {
			if t.agents[id].revision <= since && !slices.Contains(registrations.NamedAgents, id) {
				registrations.NamedAgents = append(registrations.NamedAgents, id)
			}
		}
		for _, id := range n.workspaces {
			if t.workspaces[id].revision <= since && !slices.Contains(registrations.NamedWorkspaces, id) {
				registrations.NamedWorkspaces = append(registrations.NamedWorkspaces, id)
			}
		}
	}
	return registrations
}
