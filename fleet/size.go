package fleet

import (
	"fmt"
	"unsafe"

	"github.com/coder/agentstatsd/agent"
)

// sizes are the bounded sizes of the registrations.
type sizes struct {
	agents, workspaces int
	bytes              int64
}

// registrationBytes estimates the memory of an agent, without its workspace.
func registrationBytes(r *agent.Registration) int64 {
	return int64(unsafe.Sizeof(entry{})) + r.Bytes()
}

// workspaceBytes estimates the memory of a workspace without its agents.
func workspaceBytes(w *agent.Workspace) int64 {
	return int64(unsafe.Sizeof(workspace{})) + w.Bytes()
}

// sizes returns the sizes of the registry.
func (r *registry) sizes() sizes {
	return sizes{r.agents.Len(), r.workspaces.Len(), r.bytes}
}

// sizes returns the sizes after the plan.
func (p *plan) sizes(r *registry) sizes {
	s := r.sizes()
	for id := range p.removed() {
		if e := r.agents.Get(id); e != nil {
			s.agents--
			s.bytes -= registrationBytes(e.reg.Load())
		}
	}
	for id, reg := range p.regs {
		if e := r.agents.Get(id); e != nil {
			s.bytes -= registrationBytes(e.reg.Load())
		} else {
			s.agents++
		}
		s.bytes += registrationBytes(reg)
	}
	for _, id := range p.change.RemovedWorkspaces {
		s.workspaces--
		s.bytes -= workspaceBytes(&r.workspaces.Get(id).Workspace)
	}
	for id, w := range p.workspaces {
		if existing := r.workspaces.Get(id); existing != nil {
			s.bytes -= workspaceBytes(&existing.Workspace)
		} else {
			s.workspaces++
		}
		s.bytes += workspaceBytes(&w)
	}
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
