package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Labels of the counters of registrations.
const (
	outcomeNew          = "new"
	outcomeChanged      = "changed"
	outcomeUnchanged    = "unchanged"
	outcomeSuperseded   = "superseded"
	outcomeStale        = "stale"
	outcomeDeregistered = "deregistered"

	refusedInvalid    = "invalid"
	refusedMaxAgents  = "max_agents"
	refusedMaxBytes   = "max_bytes"
	refusedNeedsForce = "needs_force"
	refusedStore      = "store"
)

// Registered is what a registration did.
type Registered struct {
	// Superseded agents were known and are not now, as a newer one with their
	// identity is.
	Superseded []agent.ID
	// Stale agents of the request were ignored: a newer one with their identity,
	// or a newer build of their workspace, was known.
	Stale []agent.ID
}

// Synced is what a sync did.
type Synced struct {
	Registered, Deregistered, Superseded int
}

// Register makes agents and workspaces known. It is all or nothing, and durable
// when it returns. Errors: *FieldError, ErrTooMany, ErrTooLarge, ErrUnavailable,
// and those of the store. It takes ownership of the set.
func (f *Fleet) Register(ctx context.Context, set Set) (Registered, error) {
	p, err := f.apply(ctx, func(r *roster) (*plan, error) {
		return planRegistrations(r, sorted(set), nil, &f.opts)
	})
	if err != nil {
		return Registered{}, err
	}
	return Registered{Superseded: p.superseded, Stale: p.stale}, nil
}

// Deregister forgets agents, and workspaces with all their agents. Their
// sessions are closed, then their series, pending and stored data go. It returns
// how many agents were known. Errors: ErrUnavailable, and those of the store,
// after which the agents are still registered.
func (f *Fleet) Deregister(ctx context.Context, agents, workspaces []agent.ID) (int, error) {
	p, err := f.apply(ctx, func(r *roster) (*plan, error) {
		return planDeregistration(r, agents, workspaces), nil
	})
	if err != nil {
		return 0, err
	}
	return len(p.deregistered), nil
}

// Sync is a replacement of the whole set of registrations that has begun.
type Sync struct {
	fleet    *Fleet
	revision uint64
}

// BeginSync begins a sync: what is registered from now on survives it. It holds
// nothing; a sync that is not applied needs no end. Error: ErrUnavailable.
func (f *Fleet) BeginSync() (*Sync, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.loaded {
		return nil, ErrUnavailable
	}
	return &Sync{fleet: f, revision: f.roster.revision}, nil
}

// Apply registers the set and deregisters all agents and workspaces that are not
// in it and were not registered since the sync began, in one step. More than
// half of all agents go only with force, else the error wraps ErrNeedsForce. The
// other errors are those of Register.
func (s *Sync) Apply(ctx context.Context, set Set, force bool) (Synced, error) {
	n := len(set.Agents)
	p, err := s.fleet.apply(ctx, func(r *roster) (*plan, error) {
		return planRegistrations(r, sorted(set), &scope{s.revision, force}, &s.fleet.opts)
	})
	if err != nil {
		return Synced{}, err
	}
	return Synced{Registered: n, Deregistered: len(p.deregistered), Superseded: len(p.superseded)}, nil
}

// sorted sorts what is compared and searched later.
func sorted(set Set) Set {
	for i := range set.Agents {
		keys := set.Agents[i].MetadataKeys
		slices.Sort(keys)
		set.Agents[i].MetadataKeys = slices.Compact(keys)
	}
	return set
}

const (
	// maxDecisions is how often a change is decided on when other replicas are
	// faster. Each time one of them made a change: so many in a row are a flood.
	maxDecisions = 20
	// decideAfter is the most that is waited, at random, before the second time;
	// twice as much before the third, and so on. A change takes some 5 ms.
	decideAfter = 5 * time.Millisecond
)

// apply decides on a plan and carries it out: those who go are cut off, then the
// database is changed, then memory. If another replica changed the registrations
// first, it decides again: decide can be called several times.
func (f *Fleet) apply(ctx context.Context, decide func(*roster) (*plan, error)) (*plan, error) {
	if err := f.lockChanges(ctx); err != nil {
		return nil, err
	}
	defer f.unlockChanges()
	if err := f.Ready(); err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		p, err := f.applyOnce(ctx, decide)
		if !errors.Is(err, agent.ErrOutdated) || n == maxDecisions {
			return p, err
		}
		f.metrics.outdated.Inc()
		select {
		case <-time.After(time.Duration(f.opts.Random() * float64(time.Duration(n)*decideAfter))):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (f *Fleet) applyOnce(ctx context.Context, decide func(*roster) (*plan, error)) (*plan, error) {
	if f.peers != nil {
		// What is decided on must be all that is registered: who is not known
		// here would not be deregistered.
		if err := f.readRegistrations(ctx); err != nil {
			return nil, err
		}
	}
	p, err := decide(&f.roster)
	if err != nil {
		f.countRefused(err)
		return nil, err
	}
	leaving := f.cutOff(p)
	if f.peers == nil {
		// Nobody else is to know who was named again.
		p.change.NamedAgents, p.change.NamedWorkspaces = nil, nil
	}
	if !p.empty() {
		revision, err := f.store.ApplyChange(ctx, f.revision, p.change)
		if err != nil {
			f.readmit(leaving)
			if !errors.Is(err, agent.ErrOutdated) {
				f.metrics.refused.WithLabelValues(refusedStore).Inc()
			}
			return nil, fmt.Errorf("store the change of the registrations: %w", err)
		}
		f.revision = revision
		p.incarnate(&f.roster, revision)
		f.peers.tellRegistrations()
	}
	added := f.commit(p, leaving)
	f.countOutcomes(p, added)
	return p, nil
}

func (f *Fleet) countRefused(err error) {
	reason := refusedInvalid
	switch {
	case errors.Is(err, ErrTooMany):
		reason = refusedMaxAgents
	case errors.Is(err, ErrTooLarge):
		reason = refusedMaxBytes
	case errors.Is(err, ErrNeedsForce):
		reason = refusedNeedsForce
	}
	f.metrics.refused.WithLabelValues(reason).Inc()
}

// cutOff closes the sessions of the agents that go and removes their series and
// pending metadata, before the database forgets them: what was still written
// after that would be refused. Until commit or readmit they cannot come back.
func (f *Fleet) cutOff(p *plan) []*entry {
	leaving := make([]*entry, 0, len(p.change.RemovedAgents))
	cut := func(ids []agent.ID, end End) {
		for _, id := range ids {
			e := f.roster.agents[id]
			leaving = append(leaving, e)
			e.turn.Lock()
			e.mu.Lock()
			e.leaving = true
			if e.session != nil {
				f.endLocked(e.session, end)
			}
			f.presentLocked(e, time.Now())
			e.lingering = false
			e.mu.Unlock()
			f.series.Remove(id)
			f.pending.Remove(id)
			e.turn.Unlock()
		}
	}
	cut(p.superseded, EndSuperseded)
	cut(p.deregistered, EndDeregistered)
	return leaving
}

// readmit undoes cutOff when the database did not take the change. What was
// pending is lost, so the instances are forgotten: their agents send it again.
func (f *Fleet) readmit(leaving []*entry) {
	for _, e := range leaving {
		e.mu.Lock()
		e.leaving = false
		if f.peers != nil && e.newest.Epoch != 0 && e.newest.Replica == f.self() {
			f.recordLocked(e)
		}
		e.instances, e.holds = nil, nil
		f.presentLocked(e, time.Now())
		e.mu.Unlock()
	}
}

// commit changes memory as the database was changed. It returns how many agents
// are new.
func (f *Fleet) commit(p *plan, leaving []*entry) int {
	for _, e := range leaving {
		e.mu.Lock()
		e.gone, e.instances, e.holds = true, nil, nil
		e.mu.Unlock()
		f.writes.remove(e)
	}
	var relabeled, revoked []*entry
	var added, changed []*entry
	faces := make(map[faceKey]struct{})
	removed := make([]*workspace, 0, len(p.change.RemovedWorkspaces))

	f.mu.Lock()
	r := &f.roster
	r.revision++
	r.remove(leaving)
	for _, w := range p.workspaces {
		r.putWorkspace(w, faces).revision = r.revision
	}
	for id, reg := range p.regs {
		e := r.agents[id]
		if e == nil {
			continue
		}
		// Tokens may change hands: the old one may be another's by now.
		if old := e.reg.Load().TokenHash; r.tokens[old] == e {
			delete(r.tokens, old)
		}
		r.tokens[reg.TokenHash] = e
	}
	for id, reg := range p.regs {
		_, named := p.named[id]
		e := r.agents[id]
		if e == nil {
			e = newEntry(reg)
			e.revision = r.revision
			added = append(added, e)
			continue
		}
		if named {
			e.revision = r.revision
		}
		old := e.reg.Load()
		if equalRegistration(old, reg) {
			continue
		}
		if old.TokenHash != reg.TokenHash {
			revoked = append(revoked, e)
		}
		if !equalIdentity(old.Identity(), reg.Identity()) {
			relabeled = append(relabeled, e)
		}
		f.replaceLocked(e, old, reg)
		changed = append(changed, e)
	}
	r.add(added)
	for _, id := range p.change.RemovedWorkspaces {
		removed = append(removed, r.workspaces[id])
		r.removeWorkspace(r.workspaces[id], faces)
	}
	f.mu.Unlock()

	for _, e := range revoked {
		e.revoke(f)
	}
	for _, e := range relabeled {
		e.mu.Lock()
		if !e.gone {
			f.series.Relabel(e.id, e.reg.Load().Identity())
		}
		e.mu.Unlock()
	}
	f.presentChange(removed, faces, slices.Concat(added, changed))
	f.tellChange(leaving, added, changed)
	f.setSizes()
	return len(added)
}

// presentChange makes known what became of agents, and of workspaces with these
// names. Only changes of the registrations change what it reads of the roster.
func (f *Fleet) presentChange(removed []*workspace, faces map[faceKey]struct{}, agents []*entry) {
	start := time.Now()
	for _, w := range removed {
		f.label(w, nil)
	}
	for _, w := range f.elect(&f.roster, faces) {
		agents = append(agents, w.agents...)
	}
	f.present(agents)
	f.metrics.collection.Observe(time.Since(start).Seconds())
}

// tellChange tells of agents that came, changed or went.
func (f *Fleet) tellChange(lists ...[]*entry) {
	var ids []agent.ID
	for _, list := range lists {
		for _, e := range list {
			ids = append(ids, e.id)
		}
	}
	if len(ids) > 0 {
		f.news.tell(ids...)
	}
}

// replaceLocked gives the agent another registration under its id.
func (f *Fleet) replaceLocked(e *entry, old, reg *agent.Registration) {
	if old.Workspace.ID != reg.Workspace.ID {
		from, to := f.roster.workspaces[old.Workspace.ID], f.roster.workspaces[reg.Workspace.ID]
		from.agents = slices.DeleteFunc(from.agents, func(other *entry) bool { return other == e })
		to.agents = append(to.agents, e)
	}
	f.roster.bytes += registrationBytes(reg) - registrationBytes(old)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reg.Store(reg)
	e.workspace = f.roster.workspaces[reg.Workspace.ID]
	e.dropForeignApps()
	switch {
	case len(reg.MetadataKeys) > 0:
		e.keys = nil
	case len(old.MetadataKeys) > 0:
		e.keys = slices.Clone(old.MetadataKeys) // they may be stored
	}
}

// revoke ends what goes on under the agent's old token.
func (e *entry) revoke(f *Fleet) {
	e.turn.Lock()
	defer e.turn.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.session; s != nil && s.token != e.reg.Load().TokenHash {
		f.endLocked(s, EndRevoked)
		f.closeSeriesLocked(e, s.info.Epoch, true)
	}
	f.presentLocked(e, time.Now())
}

func (f *Fleet) countOutcomes(p *plan, added int) {
	for outcome, n := range map[string]int{
		outcomeNew:          added,
		outcomeChanged:      len(p.regs) - added - p.unchanged,
		outcomeUnchanged:    p.unchanged,
		outcomeSuperseded:   len(p.superseded),
		outcomeStale:        len(p.stale),
		outcomeDeregistered: len(p.deregistered),
	} {
		f.metrics.registrations.WithLabelValues(outcome).Add(float64(n))
	}
}

func (f *Fleet) setSizes() {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.metrics.agents.Set(float64(len(f.roster.agents)))
	f.metrics.workspaces.Set(float64(len(f.roster.workspaces)))
	f.metrics.bytes.Set(float64(f.roster.bytes))
}
