package parts

import (
	"fmt"
	"iter"
	"slices"
	"unicode/utf8"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Set is a set of registrations that can be encoded. A message with a text that is not
// UTF-8 cannot. In the place of such a registration the set has one with ids alone. The
// service refuses it, so a sync keeps what is known of it.
type Set struct {
	agents     []*agentstatsv1.AgentRegistration
	workspaces []*agentstatsv1.Workspace
	// fields are those that are not UTF-8, by the id of the agent or of the workspace.
	agentFields, workspaceFields map[string]string
}

// SetOf returns the set of registrations, which it does not change.
func SetOf(agents []*agentstatsv1.AgentRegistration, workspaces []*agentstatsv1.Workspace) *Set {
	s := &Set{agentFields: make(map[string]string), workspaceFields: make(map[string]string)}
	s.agents = replace(agents, agentField, func(r *agentstatsv1.AgentRegistration, field string) *agentstatsv1.AgentRegistration {
		s.agentFields[string(r.GetId())] = field
		return &agentstatsv1.AgentRegistration{Id: r.GetId(), Workspace: &agentstatsv1.Workspace{Id: r.GetWorkspace().GetId()}}
	})
	s.workspaces = replace(workspaces, workspaceField, func(w *agentstatsv1.Workspace, field string) *agentstatsv1.Workspace {
		s.workspaceFields[string(w.GetId())] = field
		return &agentstatsv1.Workspace{Id: w.GetId()}
	})
	return s
}

// replace returns the list, or a copy in which those with a bad field are replaced.
func replace[M any](list []M, badField func(M) string, replaced func(M, string) M) []M {
	isCopy := false
	for i, m := range list {
		field := badField(m)
		if field == "" {
			continue
		}
		if !isCopy {
			list, isCopy = slices.Clone(list), true
		}
		list[i] = replaced(m, field)
	}
	return list
}

// Parts yields agents, then workspaces, in parts that fit into a request.
func (s *Set) Parts() iter.Seq2[[]*agentstatsv1.AgentRegistration, []*agentstatsv1.Workspace] {
	return Of(s.agents, s.workspaces)
}

// Explain has refusals say why, where the set had ids alone.
func (s *Set) Explain(refused []*agentstatsv1.RegistrationRefusal) []*agentstatsv1.RegistrationRefusal {
	for _, r := range refused {
		field := s.agentFields[string(r.GetAgentId())]
		if len(r.GetAgentId()) == 0 {
			field = s.workspaceFields[string(r.GetWorkspaceId())]
		}
		if field != "" {
			r.Field, r.Message = field, "want UTF-8"
		}
	}
	return refused
}

// text is a text of a message, and its field.
type text struct{ field, value string }

// badText returns the field of the first text that is not UTF-8; empty: all are.
func badText(texts ...text) string {
	for _, t := range texts {
		if !utf8.ValidString(t.value) {
			return t.field
		}
	}
	return ""
}

func agentField(r *agentstatsv1.AgentRegistration) string {
	if field := badText(text{"name", r.GetName()}); field != "" {
		return field
	}
	if field := workspaceField(r.GetWorkspace()); field != "" {
		return "workspace." + field
	}
	for i, app := range r.GetApps() {
		if field := badText(text{"slug", app.GetSlug()}, text{"display_name", app.GetDisplayName()}); field != "" {
			return fmt.Sprintf("apps[%d].%s", i, field)
		}
	}
	for i, key := range r.GetMetadataKeys() {
		if !utf8.ValidString(key) {
			return fmt.Sprintf("metadata_keys[%d]", i)
		}
	}
	for i, region := range r.GetObserved().GetNetwork().GetRegions() {
		if !utf8.ValidString(region.GetName()) {
			return fmt.Sprintf("observed.network.regions[%d].name", i)
		}
	}
	return ""
}

func workspaceField(w *agentstatsv1.Workspace) string {
	return badText(
		text{"name", w.GetName()}, text{"owner_username", w.GetOwnerUsername()}, text{"organization_name", w.GetOrganizationName()},
		text{"template.name", w.GetTemplate().GetName()}, text{"template.version", w.GetTemplate().GetVersion()},
	)
}
