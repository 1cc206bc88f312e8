package agentapi

import (
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// statsNames are the watches of stats by their names. One that has no stream is
// parked: it gathers reports for a watcher who comes back within the retention.
//
// With several replicas each has a watch of the name, which gathers what its own
// agents report, but one replica has the stream: the home of the watch, where
// the others hand on what they gather. See statshomes.go.
type statsNames struct {
	feed      *feed
	retention time.Duration
	limit     int // of parked watches, and of those that have another home
	maxAgents int // in a watch
	metrics   *metrics
	// self is this replica; zero: it is alone.
	self agent.ID
	// changed is told when there is news for other replicas; nil: it is alone. It
	// must not block.
	changed func()

	// mu is taken before the feed's.
	mu sync.Mutex
	// Guarded by mu.
	byName map[string]*namedStats
	parks  int64   // how often a watch was parked
	parked int     // how many are now
	away   int     // how many have another home
	ended  []claim // parked ones that expired, of which the others were not told
	early  *earlyStats
}

// namedStats is the watch of one name.
type namedStats struct {
	watch   *statsWatch
	forget  func()      // ends the watch's reports
	turn    *statsTurn  // of its stream; nil: it has none here
	expires *time.Timer // while it is parked
	park    int64       // number of its last parking
	claim   claim       // of its home; the other fields above are about streams here
	heard   time.Time   // when its home spoke of it last, if that is elsewhere
}

// statsTurn is one stream's hold of a watch.
type statsTurn struct {
	watch *statsWatch
	taken chan struct{} // closed when a newer stream has the watch
	// settled is closed when the replica that the watcher came from knows what it
	// has processed, or does not answer: before that it is told nothing. nil:
	// there is none to ask.
	settled chan struct{}
	asked   int    // how often that replica was asked, as far as is known
	round   int64  // of announcements, in which it was asked last
	end     func() // of a watch without a name; nil: it has one
}

func newStatsNames(f *feed, retention time.Duration, limit, maxAgents int, m *metrics) *statsNames {
	return &statsNames{
		feed:      f,
		retention: retention,
		limit:     limit,
		maxAgents: maxAgents,
		metrics:   m,
		byName:    make(map[string]*namedStats),
	}
}

// enter gives a stream the watch of the name, or a fresh one. Last is what the
// watcher has processed last. A stream that has the watch is told that it was
// taken. An error is the status to end the stream with.
func (n *statsNames) enter(name string, fresh func() *statsWatch, last processed) (*statsTurn, error) {
	turn := &statsTurn{taken: make(chan struct{})}
	if name == "" {
		turn.watch = fresh()
		turn.end = n.feed.watchUnnamed(turn.watch)
		return turn, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.byName[name]
	if s == nil {
		s = &namedStats{watch: fresh(), claim: claim{Name: name, Since: time.Now().UnixNano()}}
		if last.Epoch != 0 {
			s.claim.Since = 0 // it was known to another replica
		}
		s.forget = n.feed.watch(s.watch, n.early.since(s.claim.Since))
		n.byName[name] = s
	} else {
		if err := s.watch.resume(last); err != nil {
			return nil, err
		}
		switch {
		case !n.homeLocked(s):
			s.watch.unfold()
			n.away--
			n.metrics.moved.Inc()
		case s.turn != nil:
			close(s.turn.taken)
		default:
			n.unparkLocked(s)
		}
	}
	turn.watch = s.watch
	s.turn = turn
	n.claimLocked(s, last)
	return turn, nil
}

// leave parks the watch, unless a newer stream has it, here or elsewhere.
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
		if n.byName[name] == s && s.turn == nil && s.park == park && n.homeLocked(s) {
			n.expireLocked(s, expiredRetention)
		}
	})
}

// evictLocked ends the watch that was parked longest.
func (n *statsNames) evictLocked() {
	var found *namedStats
	for _, s := range n.byName {
		if n.homeLocked(s) && s.turn == nil && (found == nil || s.park < found.park) {
			found = s
		}
	}
	if found != nil {
		n.expireLocked(found, expiredLimit)
	}
}

func (n *statsNames) expireLocked(s *namedStats, reason string) {
	n.unparkLocked(s)
	s.forget()
	delete(n.byName, s.claim.Name)
	n.metrics.parkedExpired.WithLabelValues(reason).Inc()
	n.tellEndLocked(s.claim)
}

func (n *statsNames) unparkLocked(s *namedStats) {
	s.expires.Stop()
	n.parked--
	n.metrics.parked.Dec()
}

// close ends all watches. No stream has one, and none enters.
func (n *statsNames) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.byName {
		if n.homeLocked(s) {
			n.unparkLocked(s)
		}
		s.forget()
	}
	clear(n.byName)
	n.away = 0
}
