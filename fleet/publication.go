package fleet

import (
	"sync"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/families"
	"github.com/coder/agentstatsd/fleet/internal/observations"
)

// publication has series that are published at once, and the memory for what they are
// computed from.
type publication struct {
	states []agent.KeySeries
	buffer families.Buffer
	reg    agent.Registration
	state  agent.State
}

// publications are empty: who panics does not put one back.
var publications = sync.Pool{New: func() any { return &publication{} }}

// addWorkspaceLocked adds the series of a workspace. The caller holds w.up.mu, or no other
// goroutine knows w.
func (p *publication) addWorkspaceLocked(f *Fleet, w *workspace) {
	connected := w.up.local
	if f.publishes(w.up.labels, false, false) { // as it does agents without a session
		connected += w.up.observed
	}
	var series []agent.Series
	if f.publishes(w.up.labels, connected > 0, w.up.remote > 0) {
		opts, labels := f.opts.Load(), w.up.labels.Value()
		series = p.buffer.Workspace(&labels, int(connected), opts.UpTemplateVersion, opts.WorkspaceInfo)
	}
	p.states = append(p.states, agent.KeySeries{Key: agent.SeriesKey{Workspace: true, ID: w.reg.Load().ID}, Series: series})
}

// addAgentLocked adds the series of an agent. The caller holds e.mu, or no other goroutine
// knows e.
func (p *publication) addAgentLocked(e *entry) {
	var series []agent.Series
	if e.presence.published {
		reg := &p.reg
		if s := e.liveLocked(); s != nil {
			reg = s.reg.Load()
		} else {
			e.reg.Load().CopyTo(reg, e.id)
		}
		state := observations.State(e.stateLocked(&p.state), &reg.Observed, e.presence.observed)
		series = p.buffer.Agent(reg, state, e.presence.status.Value())
	}
	p.states = append(p.states, agent.KeySeries{Key: agent.SeriesKey{ID: e.id}, Series: series})
}

// publishedAtOnce is the number of workspaces and agents whose series are set at once.
const publishedAtOnce = 64

// publishMany is publish once there are publishedAtOnce.
func (f *Fleet) publishMany(p *publication) {
	if len(p.states) >= publishedAtOnce {
		f.publish(p)
	}
}

// publish publishes what was added, and forgets it.
func (f *Fleet) publish(p *publication) {
	if f.series.SetStates(p.states) != nil {
		f.metrics.statesUnserved.Inc()
	}
	clear(p.states)
	p.states = p.states[:0]
	p.buffer.Reset()
}
