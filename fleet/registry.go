package fleet

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/durations"
	"github.com/coder/agentstatsd/fleet/internal/index"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/ordered"
)

// noToken is the hash of agents without a token, which can only be relayed.
var noToken [32]byte

// registry is the set of registrations with its indexes. Each agent's registration
// has the same kept workspace as the one in workspaces.
type registry struct {
	agents     *index.Table[agent.ID, entry]
	tokens     *index.Table[[32]byte, entry]
	workspaces *index.Table[agent.ID, workspace]
	// byLabels has the first workspace of each label key. next has those that follow another
	// one: few have the labels of another.
	byLabels *index.Table[labelKey, workspace]
	next     map[*workspace]*workspace
	// templates counts the workspaces of each template that has any.
	templates map[durations.Template]int
	// order lists the agents by id. It is replaced, never changed in place:
	// readers walk it without a lock.
	order []*entry
	// revision counts the changes.
	revision uint64
	// texts are what the registrations and workspaces share.
	texts *kept.Texts
	// keptBytes estimates the memory of what is kept beside that.
	keptBytes int64
}

// naming is when coderd last named an agent or a workspace: the revision of the registry,
// and the time. Of what another replica wrote it is when this one read that.
type naming struct {
	revision uint64
	at       time.Time
}

// workspace is a registered workspace and its few agents.
type workspace struct {
	// reg is replaced under Fleet.mu, never changed in place.
	reg      atomic.Pointer[kept.Workspace]
	named    *naming // shared
	agents   []*entry
	up       up
	observed atomic.Pointer[agent.ID] // the last build that is recorded as observed
}

func newRegistry() registry {
	return registry{
		agents:     index.New(func(e *entry) agent.ID { return e.id }),
		tokens:     index.New(func(e *entry) [32]byte { return e.reg.Load().TokenHash }),
		workspaces: index.New(func(w *workspace) agent.ID { return w.reg.Load().ID }),
		byLabels:   index.New(func(w *workspace) labelKey { return labelKeyOf(w.reg.Load()) }),
		next:       make(map[*workspace]*workspace),
		templates:  make(map[durations.Template]int),
		texts:      kept.NewTexts(),
	}
}

// putWorkspace adds or replaces a workspace. It adds to keys the label keys whose
// visible workspace may change.
func (r *registry) putWorkspace(w agent.Workspace, labelKeys map[labelKey]struct{}) *workspace {
	existing := r.workspaces.Get(w.ID)
	if existing == nil {
		existing = &workspace{}
		existing.reg.Store(r.texts.Workspace(&w))
		r.workspaces.Put(existing)
	} else {
		old := existing.reg.Load()
		if old.Equal(&w) {
			return existing
		}
		r.dropLabelKey(existing, labelKeys)
		r.keptBytes -= old.Bytes()
		r.texts.ReleaseWorkspace(old)
		existing.reg.Store(r.texts.Workspace(&w))
	}
	reg := existing.reg.Load()
	r.keptBytes += reg.Bytes()
	key := labelKeyOf(reg)
	if first := r.byLabels.Get(key); first != nil {
		r.follow(existing, r.next[first])
		r.follow(first, existing)
	} else {
		r.byLabels.Put(existing)
	}
	r.templates[durations.TemplateOf(&w)]++
	labelKeys[key] = struct{}{}
	return existing
}

func (r *registry) removeWorkspace(w *workspace, labelKeys map[labelKey]struct{}) {
	r.dropLabelKey(w, labelKeys)
	reg := w.reg.Load()
	r.workspaces.Delete(reg.ID)
	r.keptBytes -= reg.Bytes()
	r.texts.ReleaseWorkspace(reg)
}

func (r *registry) dropLabelKey(w *workspace, labelKeys map[labelKey]struct{}) {
	key := labelKeyOf(w.reg.Load())
	labelKeys[key] = struct{}{}
	if first := r.byLabels.Get(key); first != w {
		for r.next[first] != w {
			first = r.next[first]
		}
		r.follow(first, r.next[w])
	} else if r.byLabels.Delete(key); r.next[w] != nil {
		r.byLabels.Put(r.next[w])
	}
	r.follow(w, nil)
	value := w.reg.Load().Value()
	template := durations.TemplateOf(&value)
	if r.templates[template]--; r.templates[template] == 0 {
		delete(r.templates, template)
	}
}

// addUnbuilt adds to keys the label key of a workspace without a build: how new it is
// follows from its agents, which change.
func (*registry) addUnbuilt(w *workspace, labelKeys map[labelKey]struct{}) {
	if reg := w.reg.Load(); reg.BuiltAt().IsZero() {
		labelKeys[labelKeyOf(reg)] = struct{}{}
	}
}

// add adds agents whose workspaces are in the registry. No other goroutine knows
// the agents yet.
func (r *registry) add(entries []*entry) {
	r.index(entries)
	r.order = ordered.With(r.order, entries, compareEntries)
}

// index is add without the order.
func (r *registry) index(entries []*entry) {
	for _, e := range entries {
		reg := e.reg.Load()
		r.agents.Put(e)
		r.keptBytes += reg.Bytes()
		r.addToken(e)
		e.workspace = r.workspaces.Get(reg.Workspace.ID)
		e.workspace.agents = append(e.workspace.agents, e)
	}
}

// addToken has the agent found by its token, if it has one.
func (r *registry) addToken(e *entry) {
	if e.reg.Load().TokenHash != noToken {
		r.tokens.Put(e)
	}
}

// removeToken has the agent not found by its token, which may be that of another agent by
// now. It is called before the token changes.
func (r *registry) removeToken(e *entry) {
	if hash := e.reg.Load().TokenHash; r.tokens.Get(hash) == e {
		r.tokens.Delete(hash)
	}
}

// follow has next follow w; nil: none does.
func (r *registry) follow(w, next *workspace) {
	if next == nil {
		delete(r.next, w)
	} else {
		r.next[w] = next
	}
}

// withLabels appends a workspace of byLabels and those that follow it to a list; nil: none.
func (r *registry) withLabels(list []*workspace, first *workspace) []*workspace {
	for w := first; w != nil; w = r.next[w] {
		list = append(list, w)
	}
	return list
}

// remove removes registered agents. Their workspaces stay.
func (r *registry) remove(entries []*entry) {
	for _, e := range entries {
		reg := e.reg.Load()
		r.agents.Delete(e.id)
		r.keptBytes -= reg.Bytes()
		r.texts.ReleaseRegistration(reg)
		r.removeToken(e)
		w := r.workspaces.Get(reg.Workspace.ID)
		w.agents = slices.DeleteFunc(w.agents, func(other *entry) bool { return other == e })
	}
	r.order = ordered.Without(r.order, entries, compareEntries)
}
