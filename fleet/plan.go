package fleet

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// Errors of a change of the registrations; nothing of it was done.
var (
	// ErrTooMany is wrapped when the change would go beyond Options.MaxAgents.
	ErrTooMany = errors.New("too many registrations")
	// ErrTooLarge is wrapped when it would go beyond Options.MaxBytes.
	ErrTooLarge = errors.New("too large registrations")
	// ErrNeedsForce is wrapped when a sync would deregister more than half of
	// all agents without force.
	ErrNeedsForce = errors.New("more than half of all agents would be deregistered")
)

// FieldError is a registration that contradicts another one.
type FieldError struct {
	// Field as in the request, like "agents[3].token_sha256".
	Field string
	// Problem names the limit and the value.
	Problem string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// Set is a set of registrations. Workspaces are those without agents; those of
// the agents are implied.
type Set struct {
	Agents     []agent.Registration
	Workspaces []agent.Workspace
}

// plan is what a change of the registrations comes to. Making it changes
// nothing.
type plan struct {
	change agent.Change
	// regs are all agents that were named and are not stale, and the agents of
	// a changed workspace; changed or not.
	regs map[agent.ID]*agent.Registration
	// named are the ids of the request, stale ones too.
	named map[agent.ID]struct{}
	// workspaces are all that were named, as they will be.
	workspaces   map[agent.ID]agent.Workspace
	superseded   []agent.ID
	stale        []agent.ID
	deregistered []agent.ID
	unchanged    int
}

// removed are the agents that go, as a set.
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

// scope is what a sync may deregister: what was not named since its revision.
type scope struct {
	revision uint64
	force    bool
}

// planRegistrations decides what registering the set does to the roster; with a
// scope, also what is deregistered because it is not in the set. It takes
// ownership of the set.
func planRegistrations(r *roster, set Set, sync *scope, o *Options) (*plan, error) {
	p := &plan{
		regs:       make(map[agent.ID]*agent.Registration, len(set.Agents)),
		named:      make(map[agent.ID]struct{}, len(set.Agents)),
		workspaces: make(map[agent.ID]agent.Workspace),
	}
	for i := range set.Agents {
		if _, twice := p.named[set.Agents[i].ID]; twice {
			return nil, &FieldError{fmt.Sprintf("agents[%d].id", i), fmt.Sprintf("want each agent once, got %s again", set.Agents[i].ID)}
		}
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
	if err := p.checkTokens(r, set); err != nil {
		return nil, err
	}
	if err := p.sizes(r).check(r.sizes(), o); err != nil {
		return nil, err
	}
	p.write(r)
	return p, nil
}

// planWorkspaces decides what each named workspace will be: that of its newest
// build, of equal builds the last one named.
func (p *plan) planWorkspaces(r *roster, set Set) {
	name := func(w agent.Workspace) {
		now, known := p.workspaces[w.ID]
		if !known {
			if held := r.workspaces[w.ID]; held != nil {
				now, known = held.Workspace, true
			}
		}
		switch {
		case !known:
		case w.Build.ID == uuid.Nil: // none known: says nothing of the build
			w.Build = now.Build
		case w.Build.CreatedAt.Before(now.Build.CreatedAt):
			w = now
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

// planAgents decides between agents with one identity. An agent of a build older
// than its workspace's is stale, as is one whose name a newer agent of the same
// build has.
func (p *plan) planAgents(r *roster, set Set) {
	type identity struct {
		workspace agent.ID
		name      string
	}
	holders := make(map[identity]*agent.Registration, len(set.Agents))
	leave := func(reg *agent.Registration) {
		if r.agents[reg.ID] != nil {
			p.superseded = append(p.superseded, reg.ID)
			return
		}
		p.stale = append(p.stale, reg.ID)
	}
	current := make(map[agent.ID]struct{}, len(set.Agents)) // named and not of an older build
	for i := range set.Agents {
		reg := &set.Agents[i]
		w := p.workspaces[reg.Workspace.ID]
		if reg.Workspace.Build.CreatedAt.Before(w.Build.CreatedAt) {
			p.stale = append(p.stale, reg.ID)
			continue
		}
		reg.Workspace = w
		current[reg.ID] = struct{}{}
		key := identity{w.ID, reg.Name}
		switch other := holders[key]; {
		case other == nil:
			holders[key] = reg
		case compareAge(reg, other) > 0:
			holders[key] = reg
			leave(other)
		default:
			leave(reg)
		}
	}
	for i := range set.Agents {
		reg := &set.Agents[i]
		if holders[identity{reg.Workspace.ID, reg.Name}] != reg {
			continue
		}
		other := r.holder(reg.Workspace.ID, reg.Name, func(id agent.ID) bool { _, found := current[id]; return found })
		switch {
		case other == nil:
		case isNewer(reg, other.reg.Load()):
			p.superseded = append(p.superseded, other.id)
		default:
			leave(reg)
			continue
		}
		p.regs[reg.ID] = reg
	}
	gone := p.removed()
	p.stale = slices.DeleteFunc(p.stale, func(id agent.ID) bool { _, leaves := gone[id]; return leaves })
}

// isNewer tells whether reg supersedes the registered agent with its identity.
func isNewer(reg, registered *agent.Registration) bool {
	if c := reg.Workspace.Build.CreatedAt.Compare(registered.Workspace.Build.CreatedAt); c != 0 {
		return c > 0
	}
	return compareAge(reg, registered) > 0
}

// planSiblings gives the other agents of a changed workspace its new data.
func (p *plan) planSiblings(r *roster) {
	gone := p.removed()
	for id, w := range p.workspaces {
		held := r.workspaces[id]
		if held == nil || equalWorkspace(&held.Workspace, &w) {
			continue
		}
		for _, e := range held.agents {
			_, leaves := gone[e.id]
			if _, planned := p.regs[e.id]; planned || leaves {
				continue
			}
			reg := *e.reg.Load()
			reg.Workspace = w
			p.regs[e.id] = &reg
		}
	}
}

// planRemovals deregisters what a sync did not name.
func (p *plan) planRemovals(r *roster, s scope) error {
	gone := p.removed()
	for id, e := range r.agents {
		_, named := p.named[id]
		_, leaves := gone[id]
		if !named && !leaves && e.revision <= s.revision {
			p.deregistered = append(p.deregistered, id)
			delete(p.regs, id)
		}
	}
	if n, of := len(p.deregistered), len(r.agents); 2*n > of && !s.force {
		return fmt.Errorf("%w: %d of %d", ErrNeedsForce, n, of)
	}
	gone = p.removed()
	for id, w := range r.workspaces {
		if _, named := p.workspaces[id]; named || w.revision > s.revision {
			continue
		}
		stays := slices.ContainsFunc(w.agents, func(e *entry) bool { _, leaves := gone[e.id]; return !leaves })
		if !stays {
			p.change.RemovedWorkspaces = append(p.change.RemovedWorkspaces, id)
		}
	}
	return nil
}

// checkTokens refuses two agents with one token.
func (p *plan) checkTokens(r *roster, set Set) error {
	gone := p.removed()
	planned := make(map[[32]byte]agent.ID, len(p.regs))
	for i := range set.Agents {
		reg := p.regs[set.Agents[i].ID]
		if reg == nil {
			continue
		}
		other, taken := planned[reg.TokenHash]
		if !taken {
			planned[reg.TokenHash] = reg.ID
			e := r.tokens[reg.TokenHash]
			if e == nil || e.id == reg.ID {
				continue
			}
			_, leaves := gone[e.id]
			next := p.regs[e.id]
			if leaves || next != nil && next.TokenHash != reg.TokenHash {
				continue
			}
			other = e.id
		}
		return &FieldError{fmt.Sprintf("agents[%d].token_sha256", i), fmt.Sprintf("want one of its own, got that of agent %s", other)}
	}
	return nil
}

// write fills the change with what differs from the roster.
func (p *plan) write(r *roster) {
	for id, reg := range p.regs {
		if e := r.agents[id]; e != nil && equalRegistration(e.reg.Load(), reg) {
			p.unchanged++
			if _, named := p.named[id]; named {
				p.change.NamedAgents = append(p.change.NamedAgents, id)
			}
			continue
		}
		p.change.Agents = append(p.change.Agents, *reg)
	}
	for id, w := range p.workspaces {
		if held := r.workspaces[id]; held != nil && equalWorkspace(&held.Workspace, &w) {
			p.change.NamedWorkspaces = append(p.change.NamedWorkspaces, id)
			continue
		}
		p.change.Workspaces = append(p.change.Workspaces, w)
	}
	p.change.RemovedAgents = slices.Concat(p.superseded, p.deregistered)
}

// planDeregistration decides what deregistering does. Unknown ids are no error.
func planDeregistration(r *roster, agents, workspaces []agent.ID) *plan {
	p := &plan{}
	seen := make(map[agent.ID]struct{}, len(agents))
	remove := func(id agent.ID) {
		if _, twice := seen[id]; twice || r.agents[id] == nil {
			return
		}
		seen[id] = struct{}{}
		p.deregistered = append(p.deregistered, id)
	}
	for _, id := range agents {
		remove(id)
	}
	seenWorkspaces := make(map[agent.ID]struct{}, len(workspaces))
	for _, id := range workspaces {
		w := r.workspaces[id]
		if _, twice := seenWorkspaces[id]; twice || w == nil {
			continue
		}
		seenWorkspaces[id] = struct{}{}
		p.change.RemovedWorkspaces = append(p.change.RemovedWorkspaces, id)
		for _, e := range w.agents {
			remove(e.id)
		}
	}
	p.change.RemovedAgents = slices.Clone(p.deregistered)
	return p
}

// incarnate gives the registrations the incarnation that the store gave them with
// the revision.
func (p *plan) incarnate(r *roster, revision int64) {
	for id, reg := range p.regs {
		reg.Incarnation = revision
		if e := r.agents[id]; e != nil {
			reg.Incarnation = e.reg.Load().Incarnation
		}
	}
}

// empty tells that the database has nothing to do.
func (p *plan) empty() bool {
	c := &p.change
	return len(c.Agents)+len(c.Workspaces)+len(c.RemovedAgents)+len(c.RemovedWorkspaces)+
		len(c.NamedAgents)+len(c.NamedWorkspaces) == 0
}
