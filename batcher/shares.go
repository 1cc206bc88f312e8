package batcher

import (
	"fmt"

	"github.com/coder/agentstatsd/agent"
)

// shares bound the entries that are pending: in all, those of one agent, and
// those of all agents of one owner. An agent's and an owner's are counted by key.
type shares struct {
	all, agent, owner int
}

// setOwner has the keys of a counted for the owner from now on.
func (p *pending) setOwner(a *agentEntries, owner agent.ID) {
	if a.owner == owner {
		return
	}
	n := len(a.keys)
	p.count(a.owner, -n)
	a.owner = owner
	p.count(owner, n)
}

// count adds n keys to those of the owner; the zero ID is nobody.
func (p *pending) count(owner agent.ID, n int) {
	if owner == (agent.ID{}) || n == 0 {
		return
	}
	if sum := p.owners[owner] + n; sum > 0 {
		p.owners[owner] = sum
	} else {
		delete(p.owners, owner)
	}
}

// mostOfAgent returns how many keys the agent has that has the most.
func (p *pending) mostOfAgent() int {
	most := 0
	for _, a := range p.agents {
		most = max(most, len(a.keys))
	}
	return most
}

// mostOfOwner returns how many keys the owner has that has the most.
func (p *pending) mostOfOwner() int {
	most := 0
	for _, n := range p.owners {
		most = max(most, n)
	}
	return most
}

// full reports whether there is no room for a new key of the agent, and why.
func (p *pending) full(a *agentEntries) (dropReason, bool) {
	switch {
	case p.len() >= p.limits.all:
		return dropCapacity, true
	case len(a.keys) >= p.limits.agent:
		return dropAgentShare, true
	case a.owner != (agent.ID{}) && p.owners[a.owner] >= p.limits.owner:
		return dropOwnerShare, true
	}
	return 0, false
}

// fullMessage says why a new key of the agent was refused.
func (p *pending) fullMessage(a *agentEntries, reason dropReason) string {
	switch reason {
	case dropAgentShare:
		return fmt.Sprintf("%d metadata keys of the agent wait for the database, limit %d of one agent (--metadata-max-pending-per-agent): no new key now", len(a.keys), p.limits.agent)
	case dropOwnerShare:
		return fmt.Sprintf("%d metadata keys of agents of the workspace's owner wait for the database, limit %d of one owner (--metadata-max-pending-per-owner): no new key now", p.owners[a.owner], p.limits.owner)
	}
	return fmt.Sprintf("%d metadata values wait for the database, limit %d (--metadata-max-pending): no new key now", p.len(), p.limits.all)
}
