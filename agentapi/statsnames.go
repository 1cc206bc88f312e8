package agentapi

import (
	"sync"
	"time"
)

// statsNames are the watches of stats by their names. One that has no stream is
// parked: it gathers reports for a watcher who comes back within the retention.
type statsNames struct {
	feed      *feed
	retention time.Duration
	limit     int // of parked watches
	metrics   *metrics

	mu sync.Mutex
	// Guarded by mu.
	byName map[string]*namedStats
	parks  int64 // how often a watch was parked
	parked int   // how many are now
}

// namedStats is the watch of one name.
type namedStats struct {
	watch   *statsWatch
	forget  func()      // ends the watch's reports
	turn    *statsTurn  // of its stream; nil: it is parked
	expires *time.Timer // while it is parked
	park    int64       // number of its last parking
}

// statsTurn is one stream's hold of a watch.
type statsTurn struct {
	watch *statsWatch
	taken chan struct{} // closed when a newer stream has the watch
	end   func()        // of a watch without a name; nil: it has one
}

func newStatsNames(f *feed, retention time.Duration, limit int, m *metrics) *statsNames {
	return &statsNames{feed: f, retention: retention, limit: limit, metrics: m, byName: make(map[string]*namedStats)}
}

// enter gives a stream the watch of the name: the one that there is, if resume
// allows it, or a fresh one. A stream that has it is told that it was taken.
func (n *statsNames) enter(name string, fresh func() *statsWatch, resume func(*statsWatch) error) (*statsTurn, error) {
	turn := &statsTurn{taken: make(chan struct{})}
	if name == "" {
		turn.watch = fresh()
		turn.end = n.feed.watch(turn.watch)
		return turn, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.byName[name]
	if s == nil {
		s = &namedStats{watch: fresh()}
		s.forget = n.feed.watch(s.watch)
		n.byName[name] = s
	} else {
		if err := resume(s.watch); err != nil {
			return nil, err
		}
		if s.turn != nil {
			close(s.turn.taken)
		} else {
			n.unparkLocked(s)
		}
	}
	turn.watch = s.watch
	s.turn = turn
	return turn, nil
}

// leave parks the watch, unless a newer stream has it.
func (n *statsNames) leave(name string, turn *statsTurn) {
	if turn.end != nil {
		turn.end()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.byName[name]
	if s == nil || s.turn != turn {
		return
	}
	if n.parked >= n.limit {
		n.evictLocked()
	}
	n.parks++
	n.parked++
	n.metrics.parked.Inc()
	park := n.parks
	s.turn, s.park = nil, park
	s.expires = time.AfterFunc(n.retention, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.byName[name] == s && s.turn == nil && s.park == park {
			n.expireLocked(name, s, expiredRetention)
		}
	})
}

// evictLocked ends the watch that was parked longest.
func (n *statsNames) evictLocked() {
	var oldest string
	var found *namedStats
	for name, s := range n.byName {
		if s.turn == nil && (found == nil || s.park < found.park) {
			oldest, found = name, s
		}
	}
	if found != nil {
		n.expireLocked(oldest, found, expiredLimit)
	}
}

func (n *statsNames) expireLocked(name string, s *namedStats, reason string) {
	n.unparkLocked(s)
	s.forget()
	delete(n.byName, name)
	n.metrics.parkedExpired.WithLabelValues(reason).Inc()
}

func (n *statsNames) unparkLocked(s *namedStats) {
	s.expires.Stop()
	n.parked--
	n.metrics.parked.Dec()
}

// close ends all parked watches. No stream has a watch, and none enters.
func (n *statsNames) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.byName {
		n.unparkLocked(s)
		s.forget()
	}
	clear(n.byName)
}
