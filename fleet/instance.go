package fleet

import (
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/acks"
)

// maxInstances bounds the instances of one agent that are kept. One is alive; the
// others are restarts within Options.InstanceRetention.
const maxInstances = 4

// Progress is how far the requests of an instance have come.
type Progress = acks.Progress

// Refusal is what was refused of one request of an instance, or of several.
type Refusal = acks.Refusal

// instance is one process of an agent, over all its sessions. It implements
// agent.Tracker and agent.ReportTracker, partly by its tracker, whose lock is a leaf.
type instance struct {
	*acks.Tracker
	id    agent.Instance
	fleet *Fleet
	entry *entry

	// Guarded by entry.mu.
	detachedAt time.Time // the end of the last session; zero while there is one
	ordinal    int64     // of the newest session here
	epoch      int64     // likewise
	// unconfirmed is the lowest epoch of its sessions here that may have opened below
	// a stored one; 0: none. Meanwhile acks are held.
	unconfirmed int64
}

// Resolve implements agent.Tracker. Refused items are charged to the agent: if there
// are any, the caller must not hold entry.mu.
func (i *instance) Resolve(resolutions []agent.Resolution) {
	if refused := i.Tracker.Resolve(resolutions); refused > 0 {
		i.fleet.chargeRefusedTo(i.entry, refused, 0)
	}
}

// Supersede implements agent.Tracker.
func (i *instance) Supersede(epoch int64) { i.fleet.supersede(i, epoch) }

// holdLocked holds acks until the instance's newest session is confirmed.
func (i *instance) holdLocked() {
	if i.unconfirmed == 0 {
		i.unconfirmed = i.epoch
	}
	i.Hold()
}

// confirmLocked confirms the sessions up to the epoch.
func (i *instance) confirmLocked(epoch int64) {
	if i.epoch > epoch { // it has another one since
		i.unconfirmed = epoch + 1
		return
	}
	i.unconfirmed = 0
	i.Release()
}

// instanceLocked returns the instance, and whether it existed before.
func (f *Fleet) instanceLocked(e *entry, id agent.Instance) (_ *instance, known bool) {
	a := e.activeLocked()
	at := slices.IndexFunc(a.instances, func(i *instance) bool { return i.id == id })
	if at >= 0 {
		// The newest is the last: the first is dropped when there are too many.
		i := a.instances[at]
		a.instances = append(slices.Delete(a.instances, at, at+1), i)
		return i, true
	}
	if len(a.instances) >= maxInstances {
		f.metrics.instancesDropped.Inc()
		e.dropInstanceLocked(0)
	}
	i := &instance{Tracker: acks.New(f.metrics.summarized), id: id, fleet: f, entry: e}
	a.instances = append(a.instances, i)
	return i, false
}

func (e *entry) dropInstanceLocked(at int) {
	a := e.activeLocked()
	i := a.instances[at]
	a.instances = slices.Delete(a.instances, at, at+1)
	a.state.pendingAcks.Remove(i)
}

func (e *entry) forgetInstanceLocked(i *instance) {
	if at := slices.Index(e.instancesLocked(), i); at >= 0 {
		e.dropInstanceLocked(at)
	}
}
