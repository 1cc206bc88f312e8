package plan

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
	"github.com/coder/agentstatsd/fleet/internal/ordered"
	"github.com/coder/agentstatsd/fleet/internal/sets"
)

// ErrTokens is wrapped when agents exchange tokens and some of these are not theirs.
var ErrTokens = errors.New("too many agents with tokens of others")

// noToken is the hash of agents without a token.
var noToken [32]byte

// maxRefusals bounds how often a set is planned again without agents that are refused.
// It takes a chain of agents, each with the token of the next, to need several.
const maxRefusals = 16

// Register decides how a set changes what is registered. It takes ownership of the set,
// in which each agent and each workspace comes once. Errors: ErrTokens, and those of
// capacity.Use.Check.
func Register(r Registered, set sets.Set, limits capacity.Limits) (*Plan, error) {
	return decide(r, set, limits, func(*Plan) error { return nil })
}

// decide plans the set without the agents that are refused. remove plans what goes.
func decide(r Registered, set sets.Set, limits capacity.Limits, remove func(*Plan) error) (*Plan, error) {
	for range maxRefusals {
		p := &Plan{
			Agents:     make(map[agent.ID]*agent.Registration, len(set.Agents)),
			Named:      make(map[agent.ID]struct{}, len(set.Agents)),
			Workspaces: make(map[agent.ID]agent.Workspace),
			Refused:    set.Refused,
		}
		for i := range set.Agents {
			p.Named[set.Agents[i].ID] = struct{}{}
		}
		p.addWorkspaces(r, set)
		p.addAgents(r, set)
		p.addSiblings(r)
		if err := remove(p); err != nil {
			return nil, err
		}
		if next, refused := p.refuseTokens(r, set); refused {
			set = next
			continue
		}
		p.fillChange(r)
		if err := p.use(r).Check(r.Use(), limits); err != nil {
			return nil, err
		}
		return p, nil
	}
	return nil, fmt.Errorf("%w: want each to have one of its own", ErrTokens)
}

// addWorkspaces decides the new version of each named workspace: the one with the
// newest build; of equal builds the last one named.
func (p *Plan) addWorkspaces(r Registered, set sets.Set) {
	name := func(w agent.Workspace) {
		now, known := p.Workspaces[w.ID]
		if !known {
			if registered := r.Workspace(w.ID); registered != nil {
				now, known = registered.Value(), true
			}
		}
		switch {
		case !known:
		case w.Build.ID != uuid.Nil && w.Build.CreatedAt.Before(now.Build.CreatedAt):
			w = now
		default:
			w.KeepKnown(&now)
		}
		p.Workspaces[w.ID] = w
	}
	for i := range set.Agents {
		name(set.Agents[i].Workspace)
	}
	for _, w := range set.Workspaces {
		name(w)
	}
}

// addAgents decides between agents with one identity. An agent is stale if its
// workspace has a newer build, or if a newer agent of its build has its name. One
// without a build is of the newest, unless it is older.
func (p *Plan) addAgents(r Registered, set sets.Set) {
	type identity struct {
		workspace agent.ID
		name      string
	}
	holders := make(map[identity]*agent.Registration, len(set.Agents))
	drop := func(reg *agent.Registration) {
		if r.Agent(reg.ID) != nil {
			p.Superseded = append(p.Superseded, reg.ID)
			return
		}
		p.Stale = append(p.Stale, reg.ID)
	}
	current := make(map[agent.ID]*agent.Registration, len(set.Agents)) // named and not of an older build
	for i := range set.Agents {
		reg := &set.Agents[i]
		w := p.Workspaces[reg.Workspace.ID]
		of := reg.Workspace.Build.CreatedAt
		if reg.Workspace.Build.ID == uuid.Nil {
			of = reg.CreatedAt
		}
		if of.Before(w.Build.CreatedAt) {
			p.Stale = append(p.Stale, reg.ID)
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
	isCurrent := func(id agent.ID) bool { _, found := current[id]; return found }
	for i := range set.Agents {
		reg := current[set.Agents[i].ID]
		if reg == nil || holders[identity{reg.Workspace.ID, reg.Name}] != reg {
			continue
		}
		id, other := r.AgentNamed(reg.Workspace.ID, reg.Name, isCurrent)
		switch {
		case other == nil:
		case isNewer(reg, other.Value(id)):
			p.Superseded = append(p.Superseded, id)
		default:
			drop(reg)
			continue
		}
		p.Agents[reg.ID] = reg
	}
	removed := p.removed()
	p.Stale = slices.DeleteFunc(p.Stale, func(id agent.ID) bool { _, isRemoved := removed[id]; return isRemoved })
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

// compareAge returns 1 if a is newer than b, of one build of one workspace.
func compareAge(a, b *agent.Registration) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), bytes.Compare(a.ID[:], b.ID[:]))
}

// refuseTokens returns the set without agents that have a token of another one. refused
// is true if there are any.
func (p *Plan) refuseTokens(r Registered, set sets.Set) (next sets.Set, refused bool) {
	removed := p.removed()
	isRemoved := func(id agent.ID) bool { _, found := removed[id]; return found }
	planned := make(map[[32]byte]agent.ID, len(p.Agents))
	for id, reg := range p.Agents {
		if known := r.Agent(id); known != nil && known.TokenHash == reg.TokenHash {
			planned[reg.TokenHash] = id // it keeps the token
		}
	}
	next = set
	next.Refused = slices.Clip(set.Refused)
	next.Agents = ordered.Drop(set.Agents, func(named *agent.Registration) bool {
		reg := p.Agents[named.ID]
		if reg == nil || reg.TokenHash == noToken || planned[reg.TokenHash] == reg.ID {
			return false
		}
		other, used := planned[reg.TokenHash]
		if !used {
			other = r.AgentWithToken(reg.TokenHash)
			if other == uuid.Nil || isRemoved(other) || p.Agents[other] != nil { // it has another one then
				planned[reg.TokenHash] = reg.ID
				return false
			}
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

// fillChange fills the change with the differences from what is registered.
func (p *Plan) fillChange(r Registered) {
	for id, reg := range p.Agents {
		if known := r.Agent(id); known != nil && known.Equal(reg) {
			p.Unchanged++
			if _, named := p.Named[id]; named {
				p.Again = append(p.Again, id)
			}
			delete(p.Agents, id)
			continue
		}
		p.Change.Agents = append(p.Change.Agents, *reg)
	}
	for id, w := range p.Workspaces {
		if known := r.Workspace(id); known != nil && known.Equal(&w) {
			p.Change.NamedWorkspaces = append(p.Change.NamedWorkspaces, id)
			continue
		}
		p.Change.Workspaces = append(p.Change.Workspaces, w)
	}
	p.Change.NamedAgents = p.Again
	p.Change.RemovedAgents = slices.Concat(p.Superseded, p.Deregistered)
}
