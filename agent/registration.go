package agent

import "time"

// Registration is what coderd says of one agent.
type Registration struct {
	ID   ID
	Name string
	// CreatedAt is when coderd made the agent.
	CreatedAt time.Time
	// ConnectionTimeout after CreatedAt makes an agent that never connected
	// count as timed out; 0: never.
	ConnectionTimeout time.Duration
	// TokenHash is the SHA-256 of the token that the agent authenticates with.
	TokenHash [32]byte
	Workspace Workspace
	Apps      []App
	// MetadataKeys are those that the template declares; empty: any.
	MetadataKeys []string
	// Parent is the agent that this one is a sub-agent of; zero: none.
	Parent ID
	// Incarnation is the revision at which the agent was made known, which the store
	// sets. It differs between registrations of an agent that was removed in between.
	Incarnation int64
}

// Workspace is what coderd says of one workspace, with or without agents.
type Workspace struct {
	ID            ID
	Name          string
	OwnerID       ID
	OwnerUsername string
	Template      Template
	Organization  string
	// Build is the latest; its zero value: none known.
	Build Build
}

// Template is a template in a version.
type Template struct {
	ID      ID
	Name    string
	Version string
}

// Build is one build of a workspace.
type Build struct {
	ID         ID
	CreatedAt  time.Time
	Transition Transition
	IsPrebuild bool
}

// Transition is what a build does to its workspace: "start", "stop", "delete",
// or empty if not known.
type Transition string

// App is an app of an agent.
type App struct {
	ID          ID
	Slug        string
	DisplayName string
	// Health until the agent reports one.
	Health AppHealth
}

// Identity returns what r's series are labelled by.
func (r *Registration) Identity() Identity {
	return Identity{
		Username:      r.Workspace.OwnerUsername,
		WorkspaceName: r.Workspace.Name,
		AgentName:     r.Name,
		TemplateName:  r.Workspace.Template.Name,
		CreatedAt:     r.CreatedAt,
	}
}

// Change is one atomic change of the set of registrations.
type Change struct {
	// Agents and Workspaces are made known or replaced. The workspace of each
	// agent is among them implicitly.
	Agents     []Registration
	Workspaces []Workspace
	// RemovedAgents and RemovedWorkspaces are forgotten, with their metadata
	// and state. They are removed before Agents and Workspaces are written.
	RemovedAgents     []ID
	RemovedWorkspaces []ID
	// NamedAgents and NamedWorkspaces were named again and did not change.
	NamedAgents     []ID
	NamedWorkspaces []ID
}
