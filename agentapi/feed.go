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
	// changed is told when an audience begins or ends; nil: nobody is. It must
	// not block.
	changed func()

	mu sync.RWMutex
	// Guarded by mu.
	watchers map[reportWatcher]struct{}
	// Streams without a name are told what other replicas relay, too. The
	// watches of names, which get a relay of their own, are in none of these.
	unnamed  audience[*statsWatch]
	activity audience[*activityWatch]
}

// audience are watchers of one kind.
type audience[W comparable] struct {
	watchers map[W]struct{}
	// since is when the first of them began, in Unix nanoseconds; it tells one
	// time of being watched from the next.
	since int64
}

// interest says since when a replica has an audience of each kind, in Unix
// nanoseconds; 0: it has none.
type interest struct {
	Unnamed  int64 `json:"unnamed,omitempty"`
	Activity int64 `json:"activity,omitempty"`
}

// reportWatcher is told of reports. It must not block, and must not change the
// report, which it may keep parts of.
type reportWatcher interface {
	report(r reportOf)
}

// reportOf is one report, or several that were made one, and whose it is.
type reportOf struct {
	agent, workspace agent.ID
	now              time.Time
	stats            *agentstatsv1.Stats
	reports          int64
}

func newFeed() *feed {
	return &feed{
		watchers: make(map[reportWatcher]struct{}),
		unnamed:  audience[*statsWatch]{watchers: make(map[*statsWatch]struct{})},
		activity: audience[*activityWatch]{watchers: make(map[*activityWatch]struct{})},
	}
}

// watch adds a watcher of the own agents' reports until cancel is called. It
// is first told what early has gathered, unless that is nil.
func (f *feed) watch(w reportWatcher, early *statsWatch) (cancel func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if early != nil {
		early.replay(w)
	}
	f.addLocked(w)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.removeLocked(w)
	}
}

// watchUnnamed adds a watch of stats without a name.
func (f *feed) watchUnnamed(w *statsWatch) (cancel func()) {
	return join(f, &f.unnamed, w)
}

// watchActivity adds a watch of activity.
func (f *feed) watchActivity(w *activityWatch) (cancel func()) {
	return join(f, &f.activity, w)
}

func join[W interface {
	comparable
	reportWatcher
}](f *feed, a *audience[W], w W) (cancel func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addLocked(w)
	a.watchers[w] = struct{}{}
	if len(a.watchers) == 1 {
		a.since = max(time.Now().UnixNano(), a.since+1)
		f.tellChanged()
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.removeLocked(w)
		delete(a.watchers, w)
		if len(a.watchers) == 0 {
			f.tellChanged()
		}
	}
}

func (f *feed) addLocked(w reportWatcher) {
	f.watchers[w] = struct{}{}
	f.watched.Add(1)
}

func (f *feed) removeLocked(w reportWatcher) {
	delete(f.watchers, w)
	f.watched.Add(-1)
}

func (f *feed) tellChanged() {
	if f.changed != nil {
		f.changed()
	}
}

// idle tells that nobody watches.
func (f *feed) idle() bool { return f.watched.Load() == 0 }

// tell tells all watchers of a report of an own agent.
func (f *feed) tell(r reportOf) {
	r.reports = 1
	f.mu.RLock()
	defer f.mu.RUnlock()
	for w := range f.watchers {
		w.report(r)
	}
}

// interest returns what audiences there are.
func (f *feed) interest() interest {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.interestLocked()
}

func (f *feed) interestLocked() (i interest) {
	if len(f.unnamed.watchers) > 0 {
		i.Unnamed = f.unnamed.since
	}
	if len(f.activity.watchers) > 0 {
		i.Activity = f.activity.since
	}
	return i
}

// relay tells the watches without a name of reports to another replica, which
// gathered them for the audience since then.
func (f *feed) relay(since int64, reports []reportOf) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.interestLocked().Unnamed != since {
		return
	}
	for w := range f.unnamed.watchers {
		for _, r := range reports {
			w.report(r)
		}
	}
}

// relayUses tells the watches of activity of workspaces whose agents reported to
// another replica, which gathered them for the audience since then.
func (f *feed) relayUses(since int64, uses []workspaceUse) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.interestLocked().Activity != since {
		return
	}
	for w := range f.activity.watchers {
		for _, u := range uses {
			w.use(u)
		}
	}
}
