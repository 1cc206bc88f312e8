// Package watchers has whoever is called when agents change.
package watchers

import (
	"slices"
	"sync"

	"github.com/coder/agentstatsd/agent"
)

// Watchers are called when agents change. The mutex is a leaf.
type Watchers struct {
	mu sync.Mutex
	// list is in the order of Add.
	list []*watcher
}

type watcher struct{ notify func([]agent.ID) }

// Add adds a watcher. notify must not block. After cancel returns it is not called any
// more.
func (n *Watchers) Add(notify func(ids []agent.ID)) (cancel func()) {
	w := &watcher{notify}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, w)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.list = slices.DeleteFunc(n.list, func(o *watcher) bool { return o == w })
	}
}

// Notify calls the watchers with the agents; without any, all are to be read again.
func (n *Watchers) Notify(ids ...agent.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.list {
		w.notify(ids)
	}
}
