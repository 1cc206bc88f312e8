package agent

import (
	"slices"
	"time"

	"github.com/google/uuid"
)

// Registration is what coderd says of one agent.
type Registration struct {
	ID   ID
	Name string
	// CreatedAt is when coderd made the agent.
	CreatedAt time.Time
	// ConnectionTimeout after CreatedAt makes an agent that never connected
	// count as timed out; 0: never.
	ConnectionTimeout time.Duration
	// TokenHash is the SHA-256 of the token that the agent authenticates with; zero: it
	// has none, so it can only be relayed.
	TokenHash [32]byte
	Workspace Workspace
	Apps      []App
	// MetadataKeys are those that the template declares; empty: any.
	MetadataKeys []string
	// Parent is the agent that this one is a sub-agent of; zero: none.
	Parent ID
	// Observed is what coderd knew of the agent's state; zero: nothing. Apps have the
	// health of the same moment then.
	Observed Observation
	// Incarnation is the revision at which the agent was made known, which the store
	// sets. It differs between registrations of an agent that was removed in between.
	Incarnation int64
}

// Equal compares all but the incarnations, which the store gives.
func (r *Registration) Equal(other *Registration) bool {
	return r.ID == other.ID &&
		r.Name == other.Name &&
		r.CreatedAt.Equal(other.CreatedAt) &&
		r.ConnectionTimeout == other.ConnectionTimeout &&
		r.TokenHash == other.TokenHash &&
		r.Workspace.Equal(&other.Workspace) &&
		slices.Equal(r.Apps, other.Apps) &&
		slices.Equal(r.MetadataKeys, other.MetadataKeys) &&
		r.Parent == other.Parent &&
		r.Observed.Equal(&other.Observed)
}

// Clone returns a copy that shares no list with r.
func (r *Registration) Clone() *Registration {
	c := *r
	c.Apps, c.MetadataKeys = slices.Clone(r.Apps), slices.Clone(r.MetadataKeys)
	return &c // Network.Regions is replaced as a whole
}

// Workspace is what coderd says of one workspace, with or without agents.
type Workspace struct {
	ID            ID
	Name          string
	OwnerID       ID // zero: not known
	OwnerUsername string
	Template      Template
	Organization  string
	// Build is the latest; its zero value: none known.
	Build Build
}

// Equal compares the workspaces.
func (w *Workspace) Equal(other *Workspace) bool {
	return w.ID == other.ID &&
		w.Name == other.Name &&
		w.OwnerID == other.OwnerID &&
		w.OwnerUsername == other.OwnerUsername &&
		w.Template == other.Template &&
		w.Organization == other.Organization &&
		w.Build.ID == other.Build.ID &&
		w.Build.CreatedAt.Equal(other.Build.CreatedAt) &&
		w.Build.Transition == other.Build.Transition &&
		w.Build.IsPrebuild == other.Build.IsPrebuild
}

// KeepKnown sets what w says nothing of to what was known of the workspace before, as
// far as that still holds: a new owner has another id, a new build another version.
func (w *Workspace) KeepKnown(known *Workspace) {
	if w.OwnerID == (ID{}) && w.OwnerUsername == known.OwnerUsername {
		w.OwnerID = known.OwnerID
	}
	if w.Template.ID == (ID{}) && w.Template.Name == known.Template.Name {
		w.Template.ID = known.Template.ID
	}
	if w.Organization == "" {
		w.Organization = known.Organization
	}
	if w.Build.ID == (ID{}) {
		w.Build = known.Build
	}
	if w.Template.Version == UnknownVersion && w.Build.ID == known.Build.ID && w.Template.Name == known.Template.Name {
		w.Template.Version = known.Template.Version
	}
}

// Owner returns what stands for the owner: the id or, if that is not known, one made of
// the name.
func (w *Workspace) Owner() ID {
	if w.OwnerID != (ID{}) {
		return w.OwnerID
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(w.OwnerUsername))
}

// Template is a template in a version.
type Template struct {
	ID      ID // zero: not known
	Name    string
	Version string
}

// UnknownVersion is the version of a template if coderd names none.
const UnknownVersion = "unknown"

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

// RegistrationRefusal is why one registration of several is refused, alone.
type RegistrationRefusal struct {
	// Agent that it is of; zero: none that is valid, or it is of a workspace.
	Agent ID
	// Workspace that it is of; zero: none that is valid.
	Workspace ID
	// Field of the registration; empty: it is refused as a whole. Problem names the
	// limit and the value.
	Field, Problem string
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
