package fleet

import (
	"slices"
	"sync"

	"github.com/coder/agentstatsd/agent"
)

// news goes to those who watch the agents. Its mutex is a leaf.
type news struct {
	mu sync.Mutex
	// watchers are told in the order in which they came.
	watchers []*watcher
}

type watcher struct{ tell func([]agent.ID) }

// Watch has f told which agents have another status, lifecycle or health of apps
// than before, are registered anew or changed, or are gone. With nil f is to
// read all agents again. f must not block, nor call the fleet: what it reads
// later is as new as the news, or newer. After cancel has returned f is not
// called any more.
func (f *Fleet) Watch(tell func(ids []agent.ID)) (cancel func()) {
	w := &watcher{tell}
	n := &f.news
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watchers = append(n.watchers, w)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.watchers = slices.DeleteFunc(n.watchers, func(o *watcher) bool { return o == w })
	}
}

// tell tells of agents; without any, that all are to be read again.
func (n *news) tell(ids ...agent.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.watchers {
		w.tell(ids)
	}
}
