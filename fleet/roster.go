package fleet

import (
	"bytes"
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/coder/agentstatsd/agent"
)

// roster is the set of registrations with its indexes. The Workspace of every
// agent's registration equals the one under its id here.
type roster struct {
	agents     map[agent.ID]*entry
	tokens     map[[32]byte]*entry
	workspaces map[agent.ID]*workspace
	// faces has the workspaces by the labels of their series.
	faces map[faceKey][]*workspace
	// templates counts the workspaces of each template, of those that have any.
	templates map[templateKey]int
	// order holds the agents by id. It is replaced, never changed in place, so
	// that readers walk it without a lock.
	order []*entry
	// revision counts the changes.
	revision uint64
	// bytes are those of all registrations and workspaces.
	bytes int64
}

// workspace is a registered workspace and its agents, of which there are few.
type workspace struct {
	agent.Workspace
	revision uint64 // as entry.revision
	agents   []*entry
	up       up
	observed atomic.Pointer[agent.ID] // the last build that is recorded as observed
}

func newRoster() roster {
	return roster{
		agents:     make(map[agent.ID]*entry),
		tokens:     make(map[[32]byte]*entry),
		workspaces: make(map[agent.ID]*workspace),
		faces:      make(map[faceKey][]*workspace),
		templates:  make(map[templateKey]int),
	}
}

// putWorkspace adds or replaces a workspace. It adds to faces the keys of those
// that may be served otherwise now.
func (r *roster) putWorkspace(w agent.Workspace, faces map[faceKey]struct{}) *workspace {
	held := r.workspaces[w.ID]
	if held == nil {
		held = &workspace{Workspace: w, up: up{key: agent.SeriesKey{Workspace: true, ID: w.ID}}}
		r.workspaces[w.ID] = held
		r.bytes += workspaceBytes(&w)
	} else {
		if equalWorkspace(&held.Workspace, &w) {
			return held
		}
		r.dropFace(held, faces)
		r.bytes += workspaceBytes(&w) - workspaceBytes(&held.Workspace)
		held.Workspace = w
	}
	key := faceOf(&w)
	r.faces[key] = append(r.faces[key], held)
	r.templates[templateOf(&w)]++
	faces[key] = struct{}{}
	return held
}

func (r *roster) removeWorkspace(w *workspace, faces map[faceKey]struct{}) {
	r.dropFace(w, faces)
	delete(r.workspaces, w.ID)
	r.bytes -= workspaceBytes(&w.Workspace)
}

func (r *roster) dropFace(w *workspace, faces map[faceKey]struct{}) {
	key := faceOf(&w.Workspace)
	faces[key] = struct{}{}
	r.faces[key] = slices.DeleteFunc(r.faces[key], func(o *workspace) bool { return o == w })
	if len(r.faces[key]) == 0 {
		delete(r.faces, key)
	}
	template := templateOf(&w.Workspace)
	if r.templates[template]--; r.templates[template] == 0 {
		delete(r.templates, template)
	}
}

// add adds agents that are not in the roster; their workspaces are. Nobody else
// knows the agents yet.
func (r *roster) add(entries []*entry) {
	for _, e := range entries {
		reg := e.reg.Load()
		r.agents[e.id] = e
		r.bytes += registrationBytes(reg)
		r.tokens[reg.TokenHash] = e
		e.workspace = r.workspaces[reg.Workspace.ID]
		e.workspace.agents = append(e.workspace.agents, e)
	}
	r.order = withAdded(r.order, entries)
}

// remove removes agents that are in the roster. Their workspaces stay.
func (r *roster) remove(entries []*entry) {
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
	r.order = withoutRemoved(r.order, entries)
}

// fewEntries are inserted or deleted one by one: moving 8 bytes for each of
// 100,000 agents takes 50 us, sorting them 20 ms.
const fewEntries = 64

func withAdded(order, added []*entry) []*entry {
	if len(added) == 0 {
		return order
	}
	next := make([]*entry, len(order), len(order)+len(added))
	copy(next, order)
	if len(added) > fewEntries {
		next = append(next, added...)
		slices.SortFunc(next, func(a, b *entry) int { return compareEntry(a, b.id) })
		return next
	}
	for _, e := range added {
		i, _ := slices.BinarySearchFunc(next, e.id, compareEntry)
		next = slices.Insert(next, i, e)
	}
	return next
}

func withoutRemoved(order, removed []*entry) []*entry {
	if len(removed) == 0 {
		return order
	}
	next := slices.Clone(order)
	if len(removed) > fewEntries {
		gone := make(map[*entry]struct{}, len(removed))
		for _, e := range removed {
			gone[e] = struct{}{}
		}
		return slices.DeleteFunc(next, func(e *entry) bool { _, found := gone[e]; return found })
	}
	for _, e := range removed {
		if i, found := slices.BinarySearchFunc(next, e.id, compareEntry); found {
			next = slices.Delete(next, i, i+1)
		}
	}
	return next
}

// holder returns the agent of the workspace with the name, of those that are
// not skipped.
func (r *roster) holder(workspaceID agent.ID, name string, skip func(agent.ID) bool) *entry {
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

func equalRegistration(a, b *agent.Registration) bool {
	return a.ID == b.ID &&
		a.Name == b.Name &&
		a.CreatedAt.Equal(b.CreatedAt) &&
		a.ConnectionTimeout == b.ConnectionTimeout &&
		a.TokenHash == b.TokenHash &&
		equalWorkspace(&a.Workspace, &b.Workspace) &&
		slices.Equal(a.Apps, b.Apps) &&
		slices.Equal(a.MetadataKeys, b.MetadataKeys) &&
		a.Parent == b.Parent
}

func equalWorkspace(a, b *agent.Workspace) bool {
	return a.ID == b.ID &&
		a.Name == b.Name &&
		a.OwnerID == b.OwnerID &&
		a.OwnerUsername == b.OwnerUsername &&
		a.Template == b.Template &&
		a.Organization == b.Organization &&
		a.Build.ID == b.Build.ID &&
		a.Build.CreatedAt.Equal(b.Build.CreatedAt) &&
		a.Build.Transition == b.Build.Transition &&
		a.Build.IsPrebuild == b.Build.IsPrebuild
}

// equalIdentity compares what series are labelled by.
func equalIdentity(a, b agent.Identity) bool {
	return a.Username == b.Username &&
		a.WorkspaceName == b.WorkspaceName &&
		a.AgentName == b.AgentName &&
		a.TemplateName == b.TemplateName &&
		a.CreatedAt.Equal(b.CreatedAt)
}
