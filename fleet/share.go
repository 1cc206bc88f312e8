package fleet

import (
	"slices"
	"time"

	"github.com/coder/agentstatsd/fleet/internal/index"
)

// sharesSlice bounds for how many workspaces the registry is locked. To publish all of them,
// with an agent each, took at most 1.5 ms among 200,000.
const sharesSlice = 64

// publishMoved publishes or withdraws the workspaces that move between replicas, with
// their agents. Others may change the registry in between. What they add meanwhile they
// publish themselves.
func (f *Fleet) publishMoved(moves func(owner, workspace string) bool) {
	start := time.Now()
	for part := range index.Parts {
		f.mu.RLock()
		workspaces := f.registry.workspaces.Part(part)
		f.mu.RUnlock()
		for slice := range slices.Chunk(workspaces, sharesSlice) {
			f.mu.RLock()
			for _, w := range slice {
				f.publishIfMoved(w, moves, start)
			}
			f.mu.RUnlock()
		}
	}
	f.metrics.collection.Observe(time.Since(start).Seconds())
}

// publishIfMoved publishes a workspace that moves. The caller has locked f.mu for reading.
func (f *Fleet) publishIfMoved(w *workspace, moves func(owner, workspace string) bool, now time.Time) {
	w.up.mu.Lock()
	moved := w.up.labels != nil && moves(w.up.labels.Names()) // one that was removed has none
	if moved {
		f.publishUpLocked(w)
	}
	w.up.mu.Unlock()
	if !moved {
		return
	}
	for _, e := range w.agents {
		e.mu.Lock()
		if e.phase == phaseRegistered {
			f.publishPresenceLocked(e, now)
		}
		e.mu.Unlock()
	}
}
