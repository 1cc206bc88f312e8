package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/observations"
	"github.com/coder/agentstatsd/fleet/internal/ordered"
	"github.com/coder/agentstatsd/fleet/internal/sets"
)

// Errors of a refused change. They are returned before anything is changed.
var (
	// ErrTooMany is wrapped when the change would exceed Options.MaxAgents.
	ErrTooMany = errors.New("too many registrations")
	// ErrTooLarge is wrapped when it would exceed Options.MaxBytes.
	ErrTooLarge = errors.New("too large registrations")
	// ErrTokens is wrapped when agents exchange tokens and some of these are not theirs.
	ErrTokens = errors.New("too many agents with tokens of others")
	// ErrNeedsForce is wrapped when a sync would deregister more than half of
	// all agents without force.
	ErrNeedsForce = errors.New("more than half of all agents would be deregistered")
)

// Set is a set of registrations, as coderd names it.
type Set = sets.Set

// plan is a decided change of the registrations. Planning changes nothing.
type plan struct {
	change agent.Change
	// regs are the agents of the request that are not stale, and the agents of a
	// changed workspace. Some of them may be unchanged, until fillChange.
	regs map[agent.ID]*agent.Registration
	// again are the agents that were named and did not change.
	again []agent.ID
	// named are the ids of the request, stale ones included.
	named map[agent.ID]struct{}
	// workspaces are the named ones, in their new version.
	workspaces     map[agent.ID]agent.Workspace
	superseded     []agent.ID
	stale          []agent.ID
	deregistered   []agent.ID
	unchanged      int // those of regs that fillChange left out
	refused        []agent.RegistrationRefusal
	keptWorkspaces []agent.ID
}

// removed returns the set of agents that the plan removes.
func (p *plan) removed() map[agent.ID]struct{} {
	ids := make(map[agent.ID]struct{}, len(p.superseded)+len(p.deregistered))
	for _, id := range p.superseded {
		ids[id] = struct{}{}
	}
	for _, id := range p.deregistered {
		ids[id] = struct{}{}
	}
	return ids
}

// maxRefusals bounds how often a set is planned again without agents that are refused.
// It takes a chain of agents, each with the token of the next, to need several.
const maxRefusals = 16

// planRegistrations decides how the set changes the registry. With a scope, it also
// deregisters what is not in the set. It takes ownership of the set.
func planRegistrations(r *registry, set Set, sync *scope, o *Options) (*plan, error) {
	set = set.WithoutRepeated()
	set.Agents = keepKnown(r, set.Agents)
	for range maxRefusals {
		p := &plan{
			regs:           make(map[agent.ID]*agent.Registration, len(set.Agents)),
			named:          make(map[agent.ID]struct{}, len(set.Agents)),
			workspaces:     make(map[agent.ID]agent.Workspace),
			refused:        set.Refused,
			keptWorkspaces: set.KeptWorkspaces,
		}
		for i := range set.Agents {
			p.named[set.Agents[i].ID] = struct{}{}
		}
		p.planWorkspaces(r, set)
		p.planAgents(r, set)
		p.planSiblings(r)
		if sync != nil {
			if err := p.planRemovals(r, *sync); err != nil {
				return nil, err
			}
		}
		if next, refused := p.refuseTokens(r, set); refused {
			set = next
			continue
		}
		p.fillChange(r)
		if err := p.sizes(r).check(r.sizes(), o); err != nil {
			return nil, err
		}
		return p, nil
	}
	return nil, fmt.Errorf("%w: want each to have one of its own", ErrTokens)
}

// keepKnown returns the agents, with what is known of that of which they say nothing. Then
// they are copies: a repeated decision must not take it for what they said.
func keepKnown(r *registry, agents []agent.Registration) []agent.Registration {
	said := agents
	for i := range said {
		e := r.agents.Get(said[i].ID)
		if e == nil {
			continue
		}
		reg, known := said[i], e.reg.Load()
		reg.TokenHash = cmp.Or(reg.TokenHash, known.TokenHash)
		if len(reg.MetadataKeys) == 0 {
			reg.MetadataKeys = known.MetadataKeys()
		}
		if observed := known.Observed(); reg.Observed.At.After(observed.At) {
			e.mu.Lock()
			reg.Observed = observations.Keep(&observed, &reg.Observed, e.stateLocked(), e.liveLocked() != nil || e.presence.remote, timeOf(e.history().endedAt))
			e.mu.Unlock()
		} else {
			reg.Observed = observed // Keep would, too
		}
		if reg.Equal(&said[i]) {
			continue
		}
		if &agents[0] == &said[0] {
			agents = slices.Clone(said)
		}
		agents[i] = reg
	}
	return agents
}

// planWorkspaces decides the new version of each named workspace: the one with the
// newest build; of equal builds the last one named.
func (p *plan) planWorkspaces(r *registry, set Set) {
	name := func(w agent.Workspace) {
		now, known := p.workspaces[w.ID]
		if !known {
			if existing := r.workspaces.Get(w.ID); existing != nil {
				now, known = existing.reg.Load().Value(), true
			}
		}
		switch {
		case !known:
		case w.Build.ID != uuid.Nil && w.Build.CreatedAt.Before(now.Build.CreatedAt):
			w = now
		default:
			w.KeepKnown(&now)
		}
		p.workspaces[w.ID] = w
	}
	for i := range set.Agents {
		name(set.Agents[i].Workspace)
	}
	for _, w := range set.Workspaces {
		name(w)
	}
}

// planAgents decides between agents with one identity. An agent is stale if its
// workspace has a newer build, or if a newer agent of its build has its name. One
// without a build is of the newest, unless it is older.
func (p *plan) planAgents(r *registry, set Set) {
	type identity struct {
		workspace agent.ID
		name      string
	}
	holders := make(map[identity]*agent.Registration, len(set.Agents))
	drop := func(reg *agent.Registration) {
		if r.agents.Get(reg.ID) != nil {
			p.superseded = append(p.superseded, reg.ID)
			return
		}
		p.stale = append(p.stale, reg.ID)
	}
	current := make(map[agent.ID]*agent.Registration, len(set.Agents)) // named and not of an older build
	for i := range set.Agents {
		reg := &set.Agents[i]
		w := p.workspaces[reg.Workspace.ID]
		of := reg.Workspace.Build.CreatedAt
		if reg.Workspace.Build.ID == uuid.Nil {
			of = reg.CreatedAt
		}
		if of.Before(w.Build.CreatedAt) {
			p.stale = append(p.stale, reg.ID)
			continue
		}
		if !reg.Workspace.Equal(&w) {
			// Another agent of the set has named it so, and may be refused yet.
			own := *reg
			reg = &own
		}
		reg.Workspace = w // if it is equal, to share its texts
		current[reg.ID] = reg
		key := identity{w.ID, reg.Name}
		switch other := holders[key]; {
		case other == nil:
			holders[key] = reg
		case compareAge(reg, other) > 0:
			holders[key] = reg
			drop(other)
		default:
			drop(reg)
		}
	}
	for i := range set.Agents {
		reg := current[set.Agents[i].ID]
		if reg == nil || holders[identity{reg.Workspace.ID, reg.Name}] != reg {
			continue
		}
		other := r.agentNamed(reg.Workspace.ID, reg.Name, func(id agent.ID) bool { _, found := current[id]; return found })
		switch {
		case other == nil:
		case isNewer(reg, other.registration()):
			p.superseded = append(p.superseded, other.id)
		default:
			drop(reg)
			continue
		}
		p.regs[reg.ID] = reg
	}
	removed := p.removed()
	p.stale = slices.DeleteFunc(p.stale, func(id agent.ID) bool { _, isRemoved := removed[id]; return isRemoved })
}

// isNewer returns whether reg supersedes the registered agent with its identity. If no
// build of that is known, the times of the agents decide.
func isNewer(reg, registered *agent.Registration) bool {
	if registered.Workspace.Build.ID == uuid.Nil {
		return compareAge(reg, registered) > 0
	}
	if c := reg.Workspace.Build.CreatedAt.Compare(registered.Workspace.Build.CreatedAt); c != 0 {
		return c > 0
	}
	return compareAge(reg, registered) > 0
}

// planSiblings gives the other agents of a changed workspace its new data.
func (p *plan) planSiblings(r *registry) {
	removed := p.removed()
	for id, w := range p.workspaces {
		existing := r.workspaces.Get(id)
		if existing == nil || existing.reg.Load().Equal(&w) {
			continue
		}
		for _, e := range existing.agents {
			_, isRemoved := removed[e.id]
			if _, planned := p.regs[e.id]; planned || isRemoved {
				continue
			}
			reg := e.registration()
			reg.Workspace = w
			p.regs[e.id] = reg
		}
	}
}

// refuseTokens returns the set without agents that have a token of another one. refused
// is true if there are any.
func (p *plan) refuseTokens(r *registry, set Set) (next Set, refused bool) {
	removed := p.removed()
	isRemoved := func(id agent.ID) bool { _, found := removed[id]; return found }
	planned := make(map[[32]byte]agent.ID, len(p.regs))
	for id, reg := range p.regs {
		if e := r.agents.Get(id); e != nil && e.reg.Load().TokenHash == reg.TokenHash {
			planned[reg.TokenHash] = id // it keeps the token
		}
	}
	next = set
	next.Refused = slices.Clip(set.Refused)
	next.Agents = ordered.Drop(set.Agents, func(named *agent.Registration) bool {
		reg := p.regs[named.ID]
		if reg == nil || reg.TokenHash == noToken || planned[reg.TokenHash] == reg.ID {
			return false
		}
		other, used := planned[reg.TokenHash]
		if !used {
			e := r.tokens.Get(reg.TokenHash)
			if e == nil || isRemoved(e.id) || p.regs[e.id] != nil { // it has another one then
				planned[reg.TokenHash] = reg.ID
				return false
			}
			other = e.id
		}
		next.Refused = append(next.Refused, agent.RegistrationRefusal{
			Agent: reg.ID, Workspace: reg.Workspace.ID, Field: "token_sha256",
			Problem: fmt.Sprintf("want one of its own, got that of agent %s", other),
		})
		refused = true
		return true
	})
	return next, refused
}

// fillChange fills the change with the differences from the registry.
func (p *plan) fillChange(r *registry) {
	for id, reg := range p.regs {
		if e := r.agents.Get(id); e != nil && e.reg.Load().Equal(reg) {
			p.unchanged++
			if _, named := p.named[id]; named {
				p.again = append(p.again, id)
			}
			delete(p.regs, id)
			continue
		}
		p.change.Agents = append(p.change.Agents, *reg)
	}
	for id, w := range p.workspaces {
		if existing := r.workspaces.Get(id); existing != nil && existing.reg.Load().Equal(&w) {
			p.change.NamedWorkspaces = append(p.change.NamedWorkspaces, id)
			continue
		}
		p.change.Workspaces = append(p.change.Workspaces, w)
	}
	p.change.NamedAgents = p.again
	p.change.RemovedAgents = slices.Concat(p.superseded, p.deregistered)
}

// setIncarnations sets the incarnations that the store assigned at the revision.
func (p *plan) setIncarnations(r *registry, revision int64) {
	for id, reg := range p.regs {
		reg.Incarnation = revision
		if e := r.agents.Get(id); e != nil {
			reg.Incarnation = e.reg.Load().Incarnation
		}
	}
}

// isEmpty returns whether the plan leaves the database as it is.
func (p *plan) isEmpty() bool {
	c := &p.change
	return len(c.Agents)+len(c.Workspaces)+len(c.RemovedAgents)+len(c.RemovedWorkspaces)+
		len(c.NamedAgents)+len(c.NamedWorkspaces) == 0
}
