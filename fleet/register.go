package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/notification"
	"github.com/coder/agentstatsd/fleet/internal/plan"
	"github.com/coder/agentstatsd/internal/backoff"
)

// Labels of the counters of registrations.
const (
	outcomeNew          = "new"
	outcomeChanged      = "changed"
	outcomeUnchanged    = "unchanged"
	outcomeSuperseded   = "superseded"
	outcomeStale        = "stale"
	outcomeDeregistered = "deregistered"
	outcomeRefused      = "refused"

	refusedInvalid    = "invalid"
	refusedNeedsForce = "needs_force"
	refusedStore      = "store"
)

// Registered is the outcome of a registration.
type Registered struct {
	// Superseded agents were removed: a newer agent has their identity.
	Superseded []agent.ID
	// Stale agents of the request were ignored: a newer agent has their identity, their
	// workspace has a newer build, or they were removed later than Set.GotAt.
	Stale []agent.ID
	// Refused are the registrations that were refused alone, those of the set included.
	Refused []agent.RegistrationRefusal
}

// Synced is the outcome of a sync.
type Synced struct {
	Registered, Deregistered, Superseded int
	Refused                              []agent.RegistrationRefusal
}

// Register adds or changes agents and workspaces. Those that come again, and agents with
// the token of another one, are refused alone. The others are registered in one step,
// which is durable when it returns. It takes ownership of the set. Errors: ErrTooMany,
// ErrTooLarge, ErrTokens, ErrUnavailable, and those of the store.
func (f *Fleet) Register(ctx context.Context, set Set) (Registered, error) {
	set = set.Sorted()
	p, err := f.apply(ctx, func(r *registry) (*plan.Plan, error) {
		completed, gone, err := f.completed(ctx, r, set)
		if err != nil {
			return nil, err
		}
		p, err := plan.Register(r, completed, f.opts.Load().capacity())
		if err == nil {
			p.Stale = append(p.Stale, gone...)
		}
		return p, err
	})
	if err != nil {
		return Registered{}, err
	}
	return Registered{Superseded: p.Superseded, Stale: p.Stale, Refused: p.Refused}, nil
}

// Deregister removes agents, and workspaces with all their agents. It ends their
// sessions, then removes their series, pending and stored data. It returns the
// number of agents that were registered. Errors: ErrUnavailable, and those of the
// store. After an error the agents are still registered.
func (f *Fleet) Deregister(ctx context.Context, agents, workspaces []agent.ID) (int, error) {
	p, err := f.apply(ctx, func(r *registry) (*plan.Plan, error) {
		return plan.Deregister(r, agents, workspaces), nil
	})
	if err != nil {
		return 0, err
	}
	return len(p.Deregistered), nil
}

// Sync is a running replacement of the whole set of registrations.
type Sync struct {
	fleet    *Fleet
	revision uint64
}

// BeginSync starts a sync. Agents registered from now on survive it. It retains
// nothing: a sync may be dropped without Apply. Error: ErrUnavailable.
func (f *Fleet) BeginSync() (*Sync, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.loaded {
		return nil, ErrUnavailable
	}
	return &Sync{fleet: f, revision: f.registry.revision}, nil
}

// Apply registers the set in one step. It deregisters all agents and workspaces that are
// not in the set and were not registered since BeginSync, or Set.ReadAt. Without force it
// removes at most half of all agents; beyond that the error wraps ErrNeedsForce.
// Other errors are those of Register.
func (s *Sync) Apply(ctx context.Context, set Set, force bool) (Synced, error) {
	set = set.Sorted()
	p, err := s.fleet.apply(ctx, func(r *registry) (*plan.Plan, error) {
		completed, _, err := s.fleet.completed(ctx, r, set)
		if err != nil {
			return nil, err
		}
		return plan.Sync(r, completed, r.earlier(s.revision, set.ReadAt), force, s.fleet.opts.Load().capacity())
	})
	if err != nil {
		return Synced{}, err
	}
	return Synced{Registered: len(p.Named), Deregistered: len(p.Deregistered), Superseded: len(p.Superseded), Refused: p.Refused}, nil
}

const (
	// maxDecisions bounds how often one change is decided. Each repetition means
	// that another replica changed the registrations first.
	maxDecisions = 20
	// minDecideWait and maxDecideWait bound the waits before it is decided again. A
	// change takes some 5 ms.
	minDecideWait = 5 * time.Millisecond
	maxDecideWait = 80 * time.Millisecond
)

// apply decides a plan and carries it out: it starts the removals, changes the
// database, then memory. It decides again, at most maxDecisions times, if another
// replica changed the registrations first.
func (f *Fleet) apply(ctx context.Context, decide func(*registry) (*plan.Plan, error)) (*plan.Plan, error) {
	if err := f.lockChanges(ctx); err != nil {
		return nil, err
	}
	defer f.unlockChanges()
	if err := f.Ready(); err != nil {
		return nil, err
	}
	conflicts := backoff.Backoff{Min: minDecideWait, Max: maxDecideWait, Random: f.opts.Load().Random}
	for n := 1; ; n++ {
		p, err := f.applyOnce(ctx, decide)
		if !errors.Is(err, agent.ErrOutdated) || n == maxDecisions {
			return p, err
		}
		f.metrics.outdated.Inc()
		if !conflicts.Wait(ctx, n) {
			return nil, err
		}
	}
}

func (f *Fleet) applyOnce(ctx context.Context, decide func(*registry) (*plan.Plan, error)) (*plan.Plan, error) {
	if f.peers != nil {
		// The plan must see all registrations: a sync cannot deregister an agent
		// that this replica does not know.
		if err := f.readRegistrations(ctx); err != nil {
			return nil, err
		}
	}
	p, err := decide(&f.registry)
	if err != nil {
		f.countRefused(err)
		return nil, err
	}
	entries := f.startRemoval(p)
	if f.peers == nil {
		// Only other replicas need to know which agents were named again.
		p.Change.NamedAgents, p.Change.NamedWorkspaces = nil, nil
	}
	if !p.IsEmpty() {
		revision, err := f.store.ApplyChange(ctx, f.revision, p.Change)
		if err != nil {
			f.abortRemoval(entries)
			if !errors.Is(err, agent.ErrOutdated) {
				f.metrics.refused.WithLabelValues(refusedStore).Inc()
				if ctx.Err() == nil && !errors.Is(err, agent.ErrRejected) {
					f.unstored.Note(err, time.Now())
				}
			}
			return nil, fmt.Errorf("store the change of the registrations: %w", err)
		}
		f.unstored.Note(nil, time.Time{})
		f.revision = revision
		p.SetIncarnations(&f.registry, revision)
		f.peers.notify(notification.Registrations)
	}
	added := f.commit(p, entries)
	f.countOutcomes(p, added)
	return p, nil
}

func (f *Fleet) countRefused(err error) {
	reason := refusedInvalid
	switch {
	case errors.Is(err, ErrTooMany):
		reason = capacity.ReasonMaxAgents
	case errors.Is(err, ErrTooLarge):
		reason = capacity.ReasonMaxBytes
	case errors.Is(err, ErrNeedsForce):
		reason = refusedNeedsForce
	}
	f.metrics.refused.WithLabelValues(reason).Inc()
}

// The removal of an agent has three states, in entry.phase:
//
//	registered --startRemoval--> removing --commit--> removed
//	     ^------------abortRemoval---/
//
// startRemoval ends the sessions, and removes series and pending metadata, before
// the database removes the agents. Otherwise late writes would be refused. An agent
// cannot connect while it is removing.
func (f *Fleet) startRemoval(p *plan.Plan) []*entry {
	entries := make([]*entry, 0, len(p.Change.RemovedAgents))
	cut := func(ids []agent.ID, end End) {
		for _, id := range ids {
			e := f.registry.agents.Get(id)
			entries = append(entries, e)
			e.requestMu.Lock()
			e.mu.Lock()
			e.phase = phaseRemoving
			if live := e.liveLocked(); live != nil {
				f.endSessionLocked(live, end)
			}
			f.publishPresenceLocked(e, time.Now())
			if e.past != nil {
				e.past.seriesRetained = false
			}
			e.mu.Unlock()
			f.series.Remove(id)
			f.pending.Remove(id)
			e.requestMu.Unlock()
		}
	}
	cut(p.Superseded, EndSuperseded)
	cut(p.Deregistered, EndDeregistered)
	return entries
}

// abortRemoval undoes startRemoval after the database refused the change. Pending
// metadata is lost, so the instances are forgotten and the agents send it again.
func (f *Fleet) abortRemoval(entries []*entry) {
	for _, e := range entries {
		e.mu.Lock()
		e.phase = phaseRegistered
		if newest := e.history().newest; f.peers != nil && newest.Epoch != 0 && newest.Replica == f.self() {
			f.queueSessionLocked(e)
		}
		e.forgetInstancesLocked()
		f.publishPresenceLocked(e, time.Now())
		e.mu.Unlock()
	}
}

// commit changes memory as the database was changed. It returns the number of new
// agents.
func (f *Fleet) commit(p *plan.Plan, entries []*entry) int {
	for _, e := range entries {
		e.mu.Lock()
		e.phase = phaseRemoved
		e.forgetInstancesLocked()
		e.mu.Unlock()
		f.queue.Remove(e)
		f.departed.Note(e.registration(), time.Now())
		f.ended.Remove(e.id)
	}
	var relabeled, revoked, retokened []*entry
	var added, changed []*entry
	labelKeys := make(map[labelKey]struct{})
	removed := make([]*workspace, 0, len(p.Change.RemovedWorkspaces))

	f.mu.Lock()
	r := &f.registry
	r.revision++
	named := &naming{r.revision, time.Now()}
	for _, e := range entries {
		r.addUnbuilt(r.workspaces.Get(e.reg.Load().Workspace.ID), labelKeys)
	}
	r.remove(entries)
	for _, w := range p.Workspaces {
		put := r.putWorkspace(w, labelKeys)
		put.named = named
		r.addUnbuilt(put, labelKeys)
	}
	for id, reg := range p.Agents {
		e := r.agents.Get(id)
		if e == nil {
			continue
		}
		if e.reg.Load().TokenHash != reg.TokenHash {
			r.removeToken(e)
			retokened = append(retokened, e)
		}
	}
	for id, reg := range p.Agents {
		e := r.agents.Get(id)
		if e == nil {
			e = newEntry(id, r.texts.Registration(reg, r.workspaces.Get(reg.Workspace.ID).reg.Load()))
			e.named = named
			added = append(added, e)
			continue
		}
		if _, isNamed := p.Named[id]; isNamed {
			e.named = named
		}
		old := e.reg.Load()
		if old.Equal(reg) {
			continue
		}
		if old.TokenHash != reg.TokenHash && old.TokenHash != noToken {
			revoked = append(revoked, e)
		}
		if !old.Identity().Equal(reg.Identity()) {
			relabeled = append(relabeled, e)
		}
		f.replaceLocked(e, old, reg)
		changed = append(changed, e)
	}
	for _, e := range retokened {
		r.addToken(e)
	}
	for _, id := range p.Again {
		if e := r.agents.Get(id); e != nil {
			e.named = named
		}
	}
	r.add(added)
	for _, id := range p.Change.RemovedWorkspaces {
		removed = append(removed, r.workspaces.Get(id))
		r.removeWorkspace(r.workspaces.Get(id), labelKeys)
	}
	f.mu.Unlock()

	for _, e := range revoked {
		e.revoke(f)
	}
	for _, e := range relabeled {
		e.mu.Lock()
		if e.phase != phaseRemoved {
			f.series.Relabel(e.id, e.reg.Load().Identity())
		}
		e.mu.Unlock()
	}
	f.publishChange(removed, labelKeys, slices.Concat(added, changed))
	for id := range p.Workspaces {
		f.queueFinishedBuildOf(r.workspaces.Get(id)) // coderd may have seen its end
	}
	f.notifyChange(entries, added, changed)
	f.setSizes()
	return len(added)
}

// publishChange publishes these agents, and the workspaces with these label keys.
// The caller holds changeSem, so the registry does not change.
func (f *Fleet) publishChange(removed []*workspace, labelKeys map[labelKey]struct{}, agents []*entry) {
	start := time.Now()
	for _, w := range removed {
		f.setLabels(w, nil)
	}
	for _, w := range f.electVisible(&f.registry, labelKeys) {
		agents = append(agents, w.agents...)
	}
	f.publishPresence(agents)
	f.metrics.collection.Observe(time.Since(start).Seconds())
}

// notifyChange notifies watchers of agents that were added, changed or removed.
func (f *Fleet) notifyChange(lists ...[]*entry) {
	var ids []agent.ID
	for _, e := range slices.Concat(lists...) {
		ids = append(ids, e.id)
	}
	if len(ids) > 0 {
		f.watchers.Notify(ids...)
	}
}

// replaceLocked replaces the agent's registration.
func (f *Fleet) replaceLocked(e *entry, old *kept.Registration, reg *agent.Registration) {
	r := &f.registry
	to := r.workspaces.Get(reg.Workspace.ID)
	if old.Workspace.ID != reg.Workspace.ID {
		from := r.workspaces.Get(old.Workspace.ID)
		from.agents = slices.DeleteFunc(from.agents, func(other *entry) bool { return other == e })
		to.agents = append(to.agents, e)
	}
	next := r.texts.Registration(reg, to.reg.Load())
	r.texts.ReleaseRegistration(old)
	r.keptBytes += next.Bytes() - old.Bytes()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reg.Store(next)
	if s := e.liveLocked(); s != nil {
		s.reg.Store(e.registration())
	}
	e.workspace = to
	e.dropForeignLocked()
}

// revoke ends the session that was opened while the agent had another token.
func (e *entry) revoke(f *Fleet) {
	e.requestMu.Lock()
	defer e.requestMu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.liveLocked(); s != nil && s.token != noToken && s.token != e.reg.Load().TokenHash {
		f.endSessionLocked(s, EndRevoked)
		f.closeSeriesLocked(e, s.info.Epoch, true)
	}
	f.publishPresenceLocked(e, time.Now())
}

func (f *Fleet) countOutcomes(p *plan.Plan, added int) {
	for outcome, n := range map[string]int{
		outcomeNew:          added,
		outcomeChanged:      len(p.Agents) - added,
		outcomeUnchanged:    p.Unchanged,
		outcomeSuperseded:   len(p.Superseded),
		outcomeStale:        len(p.Stale),
		outcomeDeregistered: len(p.Deregistered),
		outcomeRefused:      len(p.Refused),
	} {
		f.metrics.registrations.WithLabelValues(outcome).Add(float64(n))
	}
}

func (f *Fleet) setSizes() {
	f.mu.RLock()
	use := f.registry.Use()
	f.mu.RUnlock()
	f.metrics.agents.Set(float64(use.Agents))
	f.metrics.workspaces.Set(float64(use.Workspaces))
	f.metrics.bytes.Set(float64(use.Bytes()))
}
