package registrations

import (
	"maps"
	"slices"
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

var statuses = map[string]agentstatsv1.AgentStatus{
	"connecting":   agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTING,
	"connected":    agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTED,
	"disconnected": agentstatsv1.AgentStatus_AGENT_STATUS_DISCONNECTED,
	"timeout":      agentstatsv1.AgentStatus_AGENT_STATUS_TIMEOUT,
}

var lifecycles = map[string]agentstatsv1.Lifecycle_State{
	"created":          agentstatsv1.Lifecycle_STATE_CREATED,
	"starting":         agentstatsv1.Lifecycle_STATE_STARTING,
	"start_timeout":    agentstatsv1.Lifecycle_STATE_START_TIMEOUT,
	"start_error":      agentstatsv1.Lifecycle_STATE_START_ERROR,
	"ready":            agentstatsv1.Lifecycle_STATE_READY,
	"shutting_down":    agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN,
	"shutdown_timeout": agentstatsv1.Lifecycle_STATE_SHUTDOWN_TIMEOUT,
	"shutdown_error":   agentstatsv1.Lifecycle_STATE_SHUTDOWN_ERROR,
	"off":              agentstatsv1.Lifecycle_STATE_OFF,
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
			Workspace: workspace, Observed: observationOf(&w.Build.Agents[i], w.ReadAt),
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
func noteKnown(known map[uuid.UUID]registered, w *coder.Workspace) {
	for _, a := range w.CurrentAgents() {
		known[a.ID] = registered{workspace: w.ID, readAt: w.ReadAt}
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

// maxRegions is what a registration may have.
const maxRegions = 128

// observationOf returns what coderd knows of the agent's state; nil: a newer coderd has a
// status that is not known here.
func observationOf(a *coder.Agent, at time.Time) *agentstatsv1.Observation {
	status, known := statuses[a.Status]
	if !known {
		return nil
	}
	o := &agentstatsv1.Observation{At: timestamppb.New(at), Status: status}
	if state, known := lifecycles[a.Lifecycle]; known {
		o.Lifecycle = &agentstatsv1.Lifecycle{State: state}
		if since := lifecycleSince(a); !since.IsZero() {
			o.Lifecycle.ChangedAt = timestamppb.New(since)
		}
	}
	if len(a.Latencies) == 0 {
		return o
	}
	o.Network = &agentstatsv1.Network{}
	for _, region := range slices.Sorted(maps.Keys(a.Latencies)) {
		if len(o.Network.Regions) == maxRegions {
			break
		}
		// The API has no numbers of regions.
		l, id := a.Latencies[region], int64(len(o.Network.Regions)+1)
		if l.Preferred {
			o.Network.PreferredRegionId = id
		}
		o.Network.Regions = append(o.Network.Regions, &agentstatsv1.Network_Region{Id: id, Name: region, Latency: durationpb.New(l.Latency)})
	}
	return o
}
