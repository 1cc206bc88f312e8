package plan

import (
	"iter"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
	"github.com/coder/agentstatsd/fleet/internal/kept"
)

// Registered is what is registered. It does not change while something is decided.
type Registered interface {
	Agents
	Workspaces
	All
	Memory
}

// Agents are the registered agents.
type Agents interface {
	// Agent returns an agent; nil: it is not registered.
	Agent(id agent.ID) *kept.Registration
	// AgentWithToken returns the agent that has the token; zero: none has.
	AgentWithToken(hash [32]byte) agent.ID
}

// Workspaces are the registered workspaces, with their agents.
type Workspaces interface {
	// Workspace returns a workspace; nil: it is not registered.
	Workspace(id agent.ID) *kept.Workspace
	// AgentNamed returns the workspace's agent with the name, other than those that skip
	// returns true for; nil: there is none.
	AgentNamed(workspace agent.ID, name string, skip func(agent.ID) bool) (agent.ID, *kept.Registration)
	// AgentsIn iterates over the agents of a registered workspace.
	AgentsIn(workspace agent.ID) iter.Seq2[agent.ID, *kept.Registration]
}

// All iterates over agents, ordered by id, and over workspaces.
type All interface {
	AllAgents() iter.Seq2[agent.ID, *kept.Registration]
	AllWorkspaces() iter.Seq[*kept.Workspace]
}

// Memory is what the registrations take.
type Memory interface {
	Use() capacity.Use
	// Change returns a change of what is kept, which is none yet.
	Change() *kept.Change
}
