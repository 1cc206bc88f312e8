package fleet

import (
	"unsafe"

	"github.com/coder/agentstatsd/fleet/internal/capacity"
)

const (
	// indexBytes of an element in an index.Table.
	indexBytes = 17
	// agentBytes and workspaceBytes are what an agent and a workspace take beside what is
	// kept of them: with two indexes each, of an agent also its places in registry.order
	// and in its workspace.
	agentBytes     = int64(unsafe.Sizeof(entry{})) + 2*indexBytes + 2*int64(unsafe.Sizeof((*entry)(nil)))
	workspaceBytes = int64(unsafe.Sizeof(workspace{})) + 2*indexBytes
)

// Use returns what the registrations and workspaces take.
func (r *registry) Use() capacity.Use {
	return capacity.Use{
		Agents: r.agents.Len(), Workspaces: r.workspaces.Len(),
		KeptBytes: r.keptBytes + r.texts.Bytes(), AgentBytes: agentBytes, WorkspaceBytes: workspaceBytes,
	}
}

// checkReadSizes counts and logs a limit that the registrations in the database exceed.
// Another replica accepted them, or this one before its limits were lowered. They are
// served all the same. The caller holds changeSem.
func (f *Fleet) checkReadSizes(agents int) {
	f.mu.RLock()
	use := f.registry.Use()
	f.mu.RUnlock()
	excess := use.Excess(f.opts.Load().capacity())
	if excess.Reason != "" {
		f.metrics.beyondLimit.WithLabelValues(excess.Reason).Add(float64(agents))
	}
	if excess.Reason == f.exceededLimit {
		return
	}
	f.exceededLimit = excess.Reason
	if excess.Reason == "" {
		f.log.Info("the registrations in the database are within the limits of this replica again")
		return
	}
	f.log.Warn("the database has more registrations than this replica would take in; they are served, and take memory",
		"limit", excess.Reason, "want_at_most", excess.Limit, "got", excess.Used)
}
