package fleet

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/observations"
)

// up is the state of a workspace's series. Its mutex comes after entry.mu.
type up struct {
	mu sync.Mutex
	// labels is nil while the workspace is hidden by a newer one with its labels, or
	// removed.
	labels *kept.Workspace
	// local and remote count the agents that are connected to this replica, and to
	// others; observed those that coderd saw connected elsewhere.
	local, remote, observed int32
}

// connection says where an agent counts as connected.
type connection struct {
	workspace *workspace // nil: it is not connected
	remote    bool       // to another replica
	observed  bool       // elsewhere, as coderd saw
}

// labels returns the labels of the workspace's series; nil: they are hidden.
func (w *workspace) labels() *kept.Workspace {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	return w.up.labels
}

// addConnected adds n to the connected agents of the workspace.
func (f *Fleet) addConnected(at connection, n int32) {
	w := at.workspace
	if w == nil {
		return
	}
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	w.up.addLocked(at, n)
	f.publishUpLocked(w)
}

func (u *up) addLocked(at connection, n int32) {
	switch {
	case at.observed:
		u.observed += n
	case at.remote:
		u.remote += n
	default:
		u.local += n
	}
}

// publishes returns whether this replica publishes the state of a workspace with these
// labels, or of an agent of it. A replica publishes those with a local session. Those
// without any session are shared. A replica that is no member publishes nothing. What is
// hidden is not published.
func (f *Fleet) publishes(labels *kept.Workspace, local, remote bool) bool {
	switch {
	case labels == nil || f.peers == nil:
		return labels != nil
	case local || remote:
		return local && f.peers.shares.Member()
	}
	return f.peers.shares.Has(labels.Names())
}

// setLabels publishes the workspace with these labels; nil: it is hidden. It returns
// whether the labels changed.
func (f *Fleet) setLabels(w *workspace, labels *kept.Workspace) bool {
	w.up.mu.Lock()
	defer w.up.mu.Unlock()
	if w.up.labels == labels {
		return false
	}
	w.up.labels = labels
	f.publishUpLocked(w)
	return true
}

func (f *Fleet) publishUpLocked(w *workspace) {
	p := publications.Get().(*publication)
	p.addWorkspaceLocked(f, w)
	f.publish(p)
	publications.Put(p)
}

// publishPresenceLocked publishes the agent's series and its part in the count of its
// workspace, and notifies watchers of another status. It is called after each change
// of what they are computed from, before e.mu is released.
func (f *Fleet) publishPresenceLocked(e *entry, now time.Time) {
	if e.phase == phaseRemoved {
		return // startRemoval withdrew them; if the agent is back they are another entry's
	}
	next := f.presenceLocked(e, now)
	if was, is := e.presence.connection(), next.connection(); was != is {
		f.addConnected(was, -1)
		f.addConnected(is, 1)
	}
	statusChanged := e.presence.status != next.status
	e.presence = next
	p := publications.Get().(*publication)
	p.addAgentLocked(e)
	f.publish(p)
	publications.Put(p)
	if statusChanged {
		f.watchers.Notify(e.id)
	}
}

// presence is the status of an agent and how this replica publishes it.
type presence struct {
	workspace *workspace // in which it counts as connected; nil: it is not connected
	status    kept.Status
	remote    bool // it is connected to another replica
	observed  bool // what coderd saw counts
	published bool
}

func (p *presence) connection() connection {
	if p.workspace == nil {
		return connection{}
	}
	return connection{p.workspace, p.remote, p.observed}
}

func (f *Fleet) presenceLocked(e *entry, now time.Time) presence {
	registered := e.phase == phaseRegistered
	local := registered && e.liveLocked() != nil
	past := e.history()
	remote := registered && !local && f.connectedRemotelyLocked(e)
	reg := e.reg.Load()
	_, observedAt := reg.ObservedStatus()
	s := presence{
		remote:    remote,
		published: registered && f.publishes(e.workspace.labels(), local, remote),
		observed:  registered && !local && !remote && observations.Counts(observedAt, timeOf(past.endedAt), now),
	}
	status := observations.Status(reg, local || remote, past.newest.Epoch != 0, s.observed, now)
	s.status = kept.StatusOf(status)
	if status == agent.StatusConnected {
		s.workspace = e.workspace
	}
	return s
}

// publishPresence is publishPresenceLocked for unlocked agents.
func (f *Fleet) publishPresence(agents []*entry) {
	now := time.Now()
	for _, e := range agents {
		e.mu.Lock()
		f.publishPresenceLocked(e, now)
		e.mu.Unlock()
	}
}

// labelKey identifies workspaces by the labels of their series.
type labelKey struct{ username, workspace string }

func labelKeyOf(w *kept.Workspace) labelKey {
	owner, name := w.Names()
	return labelKey{owner, name}
}

// builtAt returns the time of the newest build or, if none is known, that of the newest
// agent.
func (w *workspace) builtAt() time.Time {
	at := w.reg.Load().BuiltAt()
	if at.IsZero() {
		for _, e := range w.agents {
			if created := e.reg.Load().CreatedAt(); created.After(at) {
				at = created
			}
		}
	}
	return at
}

// electVisible chooses the visible one of the workspaces with each of the label keys. It
// returns the workspaces whose labels changed. The caller holds changeSem.
func (f *Fleet) electVisible(r *registry, labelKeys map[labelKey]struct{}) (changed []*workspace) {
	var equal []*workspace
	for key := range labelKeys {
		if equal = r.withLabels(equal[:0], r.byLabels.Get(key)); len(equal) == 0 {
			continue
		}
		visible := visibleOf(equal)
		for _, w := range equal {
			labels := (*kept.Workspace)(nil)
			if w == visible {
				labels = w.reg.Load()
			}
			if f.setLabels(w, labels) {
				changed = append(changed, w)
			}
		}
	}
	return changed
}

// visibleOf returns, of some workspaces with equal labels, the one with the newest build.
// The others are hidden.
func visibleOf(equal []*workspace) *workspace {
	if len(equal) == 1 {
		return equal[0]
	}
	return slices.MaxFunc(equal, func(a, b *workspace) int {
		x, y := a.reg.Load(), b.reg.Load()
		return cmp.Or(a.builtAt().Compare(b.builtAt()), bytes.Compare(x.ID[:], y.ID[:]))
	})
}
