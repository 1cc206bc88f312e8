package fleet

import (
	"slices"
	"sync"

	"github.com/coder/agentstatsd/agent"
)

// watchers are called when agents change. The mutex is a leaf.
type watchers struct {
	mu sync.Mutex
	// list is in the order of Watch.
	list []*watcher
}

type watcher struct{ notify func([]agent.ID) }

// Watch registers notify. It is called with the agents that were registered, changed
// or removed, or that have another status, lifecycle or app health. With nil, all
// agents are to be read again. What is read after a notification is at least as new
// as the notification. notify must not block, nor call the fleet. After cancel
// returns it is not called any more.
func (f *Fleet) Watch(notify func(ids []agent.ID)) (cancel func()) {
	w := &watcher{notify}
	n := &f.watchers
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, w)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.list = slices.DeleteFunc(n.list, func(o *watcher) bool { return o == w })
	}
}

// notify calls the watchers with the agents; without any, all are to be read again.
func (n *watchers) notify(ids ...agent.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.list {
		w.notify(ids)
	}
}
