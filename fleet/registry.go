package fleet

import (
	"bytes"
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/durations"
	"github.com/coder/agentstatsd/fleet/internal/ordered"
)

// noToken is the hash of agents without a token, which can only be relayed.
var noToken [32]byte

// registry is the set of registrations with its indexes. Each agent's registration
// has the same Workspace as the workspaces map.
type registry struct {
	agents     map[agent.ID]*entry
	tokens     map[[32]byte]*entry
	workspaces map[agent.ID]*workspace
	// byLabels indexes the workspaces by the labels of their series.
	byLabels map[labelKey][]*workspace
	// templates counts the workspaces of each template that has any.
	templates map[durations.Template]int
	// order lists the agents by id. It is replaced, never changed in place:
	// readers walk it without a lock.
	order []*entry
	// revision counts the changes.
	revision uint64
	// bytes is the estimated size of all registrations and workspaces.
	bytes int64
}

// naming is when coderd last named an agent or a workspace: the revision of the registry,
// and the time. Of what another replica wrote it is when this one read that.
type naming struct {
	revision uint64
	at       time.Time
}

// workspace is a registered workspace and its few agents.
type workspace struct {
	agent.Workspace
	named    naming
	agents   []*entry
	up       up
	observed atomic.Pointer[agent.ID] // the last build that is recorded as observed
}

func newRegistry() registry {
	return registry{
		agents:     make(map[agent.ID]*entry),
		tokens:     make(map[[32]byte]*entry),
		workspaces: make(map[agent.ID]*workspace),
		byLabels:   make(map[labelKey][]*workspace),
		templates:  make(map[durations.Template]int),
	}
}

// putWorkspace adds or replaces a workspace. It adds to keys the label keys whose
// visible workspace may change.
func (r *registry) putWorkspace(w agent.Workspace, labelKeys map[labelKey]struct{}) *workspace {
	existing := r.workspaces[w.ID]
	if existing == nil {
		existing = &workspace{Workspace: w, up: up{key: agent.SeriesKey{Workspace: true, ID: w.ID}}}
		r.workspaces[w.ID] = existing
		r.bytes += workspaceBytes(&w)
	} else {
		if existing.Equal(&w) {
			return existing
		}
		r.dropLabelKey(existing, labelKeys)
		r.bytes += workspaceBytes(&w) - workspaceBytes(&existing.Workspace)
		existing.Workspace = w
	}
	key := labelKeyOf(&w)
	r.byLabels[key] = append(r.byLabels[key], existing)
	r.templates[durations.TemplateOf(&w)]++
	labelKeys[key] = struct{}{}
	return existing
}

func (r *registry) removeWorkspace(w *workspace, labelKeys map[labelKey]struct{}) {
	r.dropLabelKey(w, labelKeys)
	delete(r.workspaces, w.ID)
	r.bytes -= workspaceBytes(&w.Workspace)
}

func (r *registry) dropLabelKey(w *workspace, labelKeys map[labelKey]struct{}) {
	key := labelKeyOf(&w.Workspace)
	labelKeys[key] = struct{}{}
	r.byLabels[key] = slices.DeleteFunc(r.byLabels[key], func(o *workspace) bool { return o == w })
	if len(r.byLabels[key]) == 0 {
		delete(r.byLabels, key)
	}
	template := durations.TemplateOf(&w.Workspace)
	if r.templates[template]--; r.templates[template] == 0 {
		delete(r.templates, template)
	}
}

// addUnbuilt adds to keys the label key of a workspace without a build: how new it is
// follows from its agents, which change.
func (*registry) addUnbuilt(w *workspace, labelKeys map[labelKey]struct{}) {
	if w.Build.CreatedAt.IsZero() {
		labelKeys[labelKeyOf(&w.Workspace)] = struct{}{}
	}
}

// add adds agents whose workspaces are in the registry. No other goroutine knows
// the agents yet.
func (r *registry) add(entries []*entry) {
	for _, e := range entries {
		reg := e.reg.Load()
		r.agents[e.id] = e
		r.bytes += registrationBytes(reg)
		r.setToken(reg, e)
		e.workspace = r.workspaces[reg.Workspace.ID]
		e.workspace.agents = append(e.workspace.agents, e)
	}
	r.order = ordered.With(r.order, entries, compareEntries)
}

// setToken has the agent found by its token, if it has one.
func (r *registry) setToken(reg *agent.Registration, e *entry) {
	if reg.TokenHash != noToken {
		r.tokens[reg.TokenHash] = e
	}
}

// remove removes registered agents. Their workspaces stay.
func (r *registry) remove(entries []*entry) {
	for _, e := range entries {
		reg := e.reg.Load()
		delete(r.agents, e.id)
		r.bytes -= registrationBytes(reg)
		if r.tokens[reg.TokenHash] == e {
			delete(r.tokens, reg.TokenHash)
		}
		w := r.workspaces[reg.Workspace.ID]
		w.agents = slices.DeleteFunc(w.agents, func(other *entry) bool { return other == e })
	}
	r.order = ordered.Without(r.order, entries, compareEntries)
}

// agentNamed returns the workspace's agent with the name, other than those that
// skip returns true for; nil: none.
func (r *registry) agentNamed(workspaceID agent.ID, name string, skip func(agent.ID) bool) *entry {
	w := r.workspaces[workspaceID]
	if w == nil {
		return nil
	}
	for _, e := range w.agents {
		if e.reg.Load().Name == name && !skip(e.id) {
			return e
		}
	}
	return nil
}

// compareAge returns 1 if a is newer than b, of one build of one workspace.
func compareAge(a, b *agent.Registration) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), bytes.Compare(a.ID[:], b.ID[:]))
}
