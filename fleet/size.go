package fleet

import (
	"fmt"
	"unsafe"
)

// sizes are the bounded sizes of the registrations.
type sizes struct {
	agents, workspaces int
	bytes              int64
}

const (
	// indexBytes of an element in an index.Table.
	indexBytes = 13
	// agentBytes and workspaceBytes are what an agent and a workspace take beside what is
	// kept of them: with two indexes each, of an agent also its places in registry.order
	// and in its workspace.
	agentBytes     = int64(unsafe.Sizeof(entry{})) + 2*indexBytes + 2*int64(unsafe.Sizeof((*entry)(nil)))
	workspaceBytes = int64(unsafe.Sizeof(workspace{})) + 2*indexBytes
)

// bytes estimates the memory of all registrations and workspaces.
func (r *registry) bytes() int64 {
	return r.keptBytes + r.texts.Bytes() + int64(r.agents.Len())*agentBytes + int64(r.workspaces.Len())*workspaceBytes
}

// sizes returns the sizes of the registry.
func (r *registry) sizes() sizes {
	return sizes{r.agents.Len(), r.workspaces.Len(), r.bytes()}
}

// sizes returns the sizes after the plan.
func (p *plan) sizes(r *registry) sizes {
	s := r.sizes()
	change := r.texts.Change()
	for id := range p.removed() {
		if e := r.agents.Get(id); e != nil {
			s.agents--
			change.RemoveRegistration(e.reg.Load())
		}
	}
	for i := range p.change.Agents {
		reg := &p.change.Agents[i]
		if e := r.agents.Get(reg.ID); e != nil {
			change.RemoveRegistration(e.reg.Load())
		} else {
			s.agents++
		}
		change.AddRegistration(reg)
	}
	for _, id := range p.change.RemovedWorkspaces {
		s.workspaces--
		change.RemoveWorkspace(r.workspaces.Get(id).reg.Load())
	}
	for i := range p.change.Workspaces {
		w := &p.change.Workspaces[i]
		if existing := r.workspaces.Get(w.ID); existing != nil {
			change.RemoveWorkspace(existing.reg.Load())
		} else {
			s.workspaces++
		}
		change.AddWorkspace(w)
	}
	now := r.sizes()
	s.bytes += change.Bytes() + int64(s.agents-now.agents)*agentBytes + int64(s.workspaces-now.workspaces)*workspaceBytes
	return s
}

// check refuses sizes above a limit. A size above a lowered limit passes if it does not
// grow.
func (s sizes) check(now sizes, o *Options) error {
	switch {
	case s.agents > o.MaxAgents && s.agents > now.agents:
		return fmt.Errorf("%w: want at most %d agents (--max-agents), got %d", ErrTooMany, o.MaxAgents, s.agents)
	case s.workspaces > o.MaxAgents && s.workspaces > now.workspaces:
		return fmt.Errorf("%w: want at most %d workspaces (--max-agents), got %d", ErrTooMany, o.MaxAgents, s.workspaces)
	case s.bytes > o.MaxBytes && s.bytes > now.bytes:
		return fmt.Errorf("%w: want at most %d bytes in memory of all (--max-registrations-bytes), got %d", ErrTooLarge, o.MaxBytes, s.bytes)
	}
	return nil
}

// checkReadSizes counts and logs a limit that the registrations in the database exceed.
// Another replica accepted them, or this one before its limits were lowered. They are
// served all the same. The caller holds changeSem.
func (f *Fleet) checkReadSizes(agents int) {
	f.mu.RLock()
	s := f.registry.sizes()
	f.mu.RUnlock()
	reason, limit, value := "", int64(0), int64(0)
	switch {
	case s.agents > f.opts.Load().MaxAgents:
		reason, limit, value = refusedMaxAgents, int64(f.opts.Load().MaxAgents), int64(s.agents)
	case s.workspaces > f.opts.Load().MaxAgents:
		reason, limit, value = refusedMaxAgents, int64(f.opts.Load().MaxAgents), int64(s.workspaces)
	case s.bytes > f.opts.Load().MaxBytes:
		reason, limit, value = refusedMaxBytes, f.opts.Load().MaxBytes, s.bytes
	}
	if reason != "" {
		f.metrics.beyondLimit.WithLabelValues(reason).Add(float64(agents))
	}
	if reason == f.exceededLimit {
		return
	}
	f.exceededLimit = reason
	if reason == "" {
		f.log.Info("the registrations in the database are within the limits of this replica again")
		return
	}
	f.log.Warn("the database has more registrations than this replica would take in; they are served, and take memory",
		"limit", reason, "want_at_most", limit, "got", value)
}
