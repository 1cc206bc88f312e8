package registrations

import (
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var transitions = map[string]agentstatsv1.Build_Transition{
	coder.TransitionStart:  agentstatsv1.Build_TRANSITION_START,
	"stop":                 agentstatsv1.Build_TRANSITION_STOP,
	coder.TransitionDelete: agentstatsv1.Build_TRANSITION_DELETE,
}

var appHealths = map[string]agentstatsv1.AppHealth{
	"disabled":     agentstatsv1.AppHealth_APP_HEALTH_DISABLED,
	"initializing": agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING,
	"healthy":      agentstatsv1.AppHealth_APP_HEALTH_HEALTHY,
	"unhealthy":    agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY,
}

// messagesOf returns the registrations of a workspace's agents, and the workspace. What
// the API has not, tokens and declared metadata, is absent: what is known of it stays.
func messagesOf(w *coder.Workspace) ([]*agentstatsv1.AgentRegistration, *agentstatsv1.Workspace) {
	workspace := &agentstatsv1.Workspace{
		Id: w.ID[:], Name: w.Name, OwnerId: optional(&w.OwnerID), OwnerUsername: w.OwnerName, OrganizationName: w.OrganizationName,
		Template: &agentstatsv1.Template{Id: optional(&w.TemplateID), Name: w.TemplateName},
	}
	if w.Build.IsDone() && w.Build.ID != uuid.Nil && !w.Build.CreatedAt.IsZero() {
		// The agents of the build before stay until this one is done: it is not theirs.
		workspace.Template.Version = w.Build.TemplateVersionName
		workspace.Build = &agentstatsv1.Build{
			Id: w.Build.ID[:], CreatedAt: timestamppb.New(w.Build.CreatedAt),
			Transition: transitions[w.Build.Transition], IsPrebuild: w.IsPrebuild,
		}
	}
	var agents []*agentstatsv1.AgentRegistration
	for i, a := range w.CurrentAgents() {
		reg := &agentstatsv1.AgentRegistration{
			Id: w.Build.Agents[i].ID[:], Name: a.Name, ParentId: optional(&w.Build.Agents[i].ParentID),
			CreatedAt: timestamppb.New(a.CreatedAt), ConnectionTimeout: durationpb.New(a.ConnectionTimeout),
			Workspace: workspace,
		}
		for j := range a.Apps {
			app := &a.Apps[j]
			reg.Apps = append(reg.Apps, &agentstatsv1.App{Id: app.ID[:], Slug: app.Slug, DisplayName: app.DisplayName, Health: healthOf(app)})
		}
		agents = append(agents, reg)
	}
	return agents, workspace
}

// healthOf returns the health of an app. One that is not known here, of a newer coderd, is
// not known yet.
func healthOf(app *coder.App) agentstatsv1.AppHealth {
	if health, known := appHealths[app.Health]; known {
		return health
	}
	return agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING
}

// optional returns the bytes of an id; nil: it is zero.
func optional(id *uuid.UUID) []byte {
	if *id == uuid.Nil {
		return nil
	}
	return id[:]
}

// noteKnown notes the agents of a workspace.
func noteKnown(known map[uuid.UUID]Known, w *coder.Workspace) {
	for _, a := range w.CurrentAgents() {
		known[a.ID] = Known{Workspace: w.ID, Lifecycle: a.Lifecycle, Since: lifecycleSince(&a), ReadAt: w.ReadAt}
	}
}

// lifecycleSince returns since when the agent has its state; zero: not known.
func lifecycleSince(a *coder.Agent) time.Time {
	switch a.Lifecycle {
	case "starting":
		return a.StartedAt
	case "ready", "start_timeout", "start_error":
		return a.ReadyAt
	}
	return time.Time{}
}
