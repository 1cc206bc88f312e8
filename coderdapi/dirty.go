package coderdapi

import (
	"maps"
	"slices"
	"sync"

	"github.com/coder/agentstatsd/agent"
)

// dirtySet is the set of agents that a watch has to read again. Any goroutine may add
// to it. The watch's goroutine empties it.
type dirtySet struct {
	// only these agents are added; nil: all are.
	only map[agent.ID]struct{}
	// limit of ids in the set. Beyond it all agents are dirty.
	limit int
	// wake has an element when something is dirty.
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	ids map[agent.ID]struct{}
	all bool
}

// newDirtySet returns a set for these agents; none: for all. It keeps at most limit
// ids.
func newDirtySet(only []agent.ID, limit int) *dirtySet {
	d := &dirtySet{limit: limit, wake: make(chan struct{}, 1), ids: make(map[agent.ID]struct{})}
	if len(only) > 0 {
		d.only = make(map[agent.ID]struct{}, len(only))
		for _, id := range only {
			d.only[id] = struct{}{}
		}
	}
	return d
}

// markDirty adds the agents that the watch has; nil ids: all of them. It does not
// block.
func (d *dirtySet) markDirty(ids []agent.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addLocked(ids)
	if ids == nil {
		d.setAllLocked()
	}
	if len(d.ids) == 0 && !d.all {
		return
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *dirtySet) addLocked(ids []agent.ID) {
	for _, id := range ids {
		if d.all {
			return
		}
		if _, watched := d.only[id]; !watched && d.only != nil {
			continue
		}
		d.ids[id] = struct{}{}
		if len(d.ids) > d.limit {
			d.setAllLocked()
		}
	}
}

func (d *dirtySet) setAllLocked() {
	d.all = true
	clear(d.ids)
}

// takeDirty returns and empties the set. If all is true, all agents were dirty.
func (d *dirtySet) takeDirty() (ids []agent.ID, all bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids, all = slices.Collect(maps.Keys(d.ids)), d.all
	clear(d.ids)
	d.all = false
	return ids, all
}

// putBack makes the agents dirty again, without waking the watcher.
func (d *dirtySet) putBack(ids []agent.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addLocked(ids)
}
