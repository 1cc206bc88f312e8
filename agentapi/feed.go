package agentapi

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// feed hands the reports of agents on to those who watch them.
type feed struct {
	// watched is the number of watchers: while it is 0 a report costs one load.
	watched atomic.Int64

	mu sync.RWMutex
	// Guarded by mu.
	watchers map[reportWatcher]struct{}
}

// reportWatcher is told of reports. It must not block, and must not change the
// report, which it may keep parts of.
type reportWatcher interface {
	report(r reportOf)
}

// reportOf is one report and whose it is.
type reportOf struct {
	agent, workspace agent.ID
	now              time.Time
	stats            *agentstatsv1.Stats
}

func newFeed() *feed { return &feed{watchers: make(map[reportWatcher]struct{})} }

// watch adds a watcher until cancel is called.
func (f *feed) watch(w reportWatcher) (cancel func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[w] = struct{}{}
	f.watched.Add(1)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
		f.watched.Add(-1)
	}
}

// idle tells that nobody watches.
func (f *feed) idle() bool { return f.watched.Load() == 0 }

// tell tells all watchers of a report.
func (f *feed) tell(r reportOf) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for w := range f.watchers {
		w.report(r)
	}
}
