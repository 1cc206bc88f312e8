package agentapi

import (
	"bytes"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// A watch's home is the replica that its newest stream entered on. It claims
// the name; a replica that hears of a newer claim than its own ends its stream,
// and hands on to the new home what was not acked. Nothing is in two places: a
// report is in one replica's watch, or on the way to the next.
//
// A response that the last home told may have been processed without its ack
// having arrived. The watcher says so when it enters, and its new home tells it
// nothing before the last one knows: until then the watcher would say the same
// on any other replica, too.

const (
	// maxProcessed is the number of epochs that are told with a claim.
	maxProcessed = 4
	// maxAsked is how often the replica that a watcher came from is asked whether
	// it knows what was processed; then it is taken to be gone.
	maxAsked = 5
	// maxEnded bounds the ended watches of which other replicas are told. They
	// find out by themselves about more.
	maxEnded = 256
)

// claim says that a replica is the home of a watch.
type claim struct {
	Name string `json:"name"`
	// Stamp is when the newest stream entered, in Unix nanoseconds. The highest
	// one counts, of equal ones that of the higher replica.
	Stamp int64 `json:"stamp"`
	// Since is when the watch began, in Unix nanoseconds.
	Since int64 `json:"since"`
	// Processed is what watchers have processed of other replicas, which did not
	// say yet that they know.
	Processed []processed `json:"processed,omitempty"`

	home agent.ID
}

// processed is the last response that a watcher has processed.
type processed struct {
	Epoch    uint64 `json:"epoch"`
	Sequence int64  `json:"sequence"`
}

// settlement says that a replica knows what was processed of its epoch.
type settlement struct {
	Name  string `json:"name"`
	Epoch uint64 `json:"epoch"`
}

func (c *claim) newer(than *claim) bool {
	if c.Stamp != than.Stamp {
		return c.Stamp > than.Stamp
	}
	return bytes.Compare(c.home[:], than.home[:]) > 0
}

func (n *statsNames) homeLocked(s *namedStats) bool { return s.claim.home == n.self }

// claimLocked makes this replica the home of a watch which a stream has entered.
func (n *statsNames) claimLocked(s *namedStats, last processed) {
	s.claim.home = n.self
	s.claim.Stamp = max(time.Now().UnixNano(), s.claim.Stamp+1)
	if n.changed == nil {
		return
	}
	known := slices.DeleteFunc(slices.Clone(s.claim.Processed), func(p processed) bool {
		return p.Epoch == last.Epoch || p.Epoch == s.watch.epoch
	})
	if last.Epoch != 0 && last.Epoch != s.watch.epoch {
		s.turn.settled = make(chan struct{})
		known = append(known[max(0, len(known)-maxProcessed+1):], last)
	}
	s.claim.Processed = known
	n.changed()
}

// tellEndLocked has the others be told that a watch has ended.
func (n *statsNames) tellEndLocked(c claim) {
	if n.changed != nil && len(n.ended) < maxEnded {
		n.ended = append(n.ended, c)
		n.changed()
	}
}

// claims returns what other replicas are to be told: the claims of this one, the
// watches that have ended since the last call, and whether a watcher waits for
// an answer.
func (n *statsNames) claims() (claims, ended []claim, urgent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.byName {
		if n.homeLocked(s) {
			claims = append(claims, s.claim)
			urgent = urgent || s.turn.unsettled()
		}
	}
	ended, n.ended = n.ended, nil
	return claims, ended, urgent
}

func (t *statsTurn) unsettled() bool {
	if t == nil || t.settled == nil {
		return false
	}
	select {
	case <-t.settled:
		return false
	default:
		return true
	}
}

// sent takes in that a claim of this replica has reached those who listen, in
// the round of announcements.
func (n *statsNames) sent(c claim, round int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.byName[c.Name]
	if s == nil || !n.homeLocked(s) || s.claim.Stamp != c.Stamp || !s.turn.unsettled() || round <= s.turn.round {
		return
	}
	s.turn.round = round
	s.turn.asked++
	if s.turn.asked >= maxAsked {
		n.metrics.unsettled.Inc()
		close(s.turn.settled)
	}
}

// settle takes in that the replica that a watcher came from knows what it has
// processed.
func (n *statsNames) settle(of settlement) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.byName[of.Name]
	if s == nil || !n.homeLocked(s) {
		return
	}
	last := len(s.claim.Processed) - 1
	at := slices.IndexFunc(s.claim.Processed, func(p processed) bool { return p.Epoch == of.Epoch })
	if at < 0 {
		return
	}
	if at == last && s.turn.unsettled() {
		close(s.turn.settled) // the newest is what the turn waits for
	}
	s.claim.Processed = slices.Delete(slices.Clone(s.claim.Processed), at, at+1)
}

// hear takes in the claim of another replica, and tells whether the replica is
// to be told that a part of it is settled.
func (n *statsNames) hear(c claim) (settled *settlement) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.byName[c.Name]
	if s == nil {
		if n.away >= n.limit {
			n.metrics.relayRefused.WithLabelValues(refusedName).Inc()
			return nil
		}
		s = &namedStats{watch: newStatsWatch(nil, n.maxAgents, n.metrics), claim: c, heard: time.Now()}
		s.forget = n.feed.watch(s.watch, n.early.since(c.Since))
		n.byName[c.Name] = s
		n.away++
		return nil
	}
	for _, p := range c.Processed {
		if p.Epoch == s.watch.epoch {
			// Another sequence than that of the response which was told last is of one
			// that is known to be processed.
			_, _ = s.watch.ack(p.Sequence)
			settled = &settlement{Name: c.Name, Epoch: p.Epoch}
		}
	}
	if c.newer(&s.claim) {
		if n.homeLocked(s) {
			n.giveUpLocked(s)
		}
		s.claim = c
	}
	if c.home == s.claim.home {
		s.claim.Processed = c.Processed
		s.heard = time.Now()
	}
	return settled
}

// giveUpLocked ends the stream of a watch that has a new home elsewhere.
func (n *statsNames) giveUpLocked(s *namedStats) {
	if s.turn != nil {
		close(s.turn.taken)
		s.turn = nil
	} else {
		n.unparkLocked(s)
	}
	n.away++
	s.watch.fold()
	s.watch.follow(nil)
}

// hearEnd takes in that a watch has ended on its home.
func (n *statsNames) hearEnd(c claim) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.byName[c.Name]; s != nil && s.claim.home == c.home && s.claim.Stamp == c.Stamp && !n.homeLocked(s) {
		n.dropLocked(s, droppedEnded)
	}
}

// dropSilent ends the watches whose home has said nothing of them for the
// retention.
func (n *statsNames) dropSilent(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.byName {
		if !n.homeLocked(s) && now.Sub(s.heard) >= n.retention {
			n.dropLocked(s, droppedSilent)
		}
	}
}

func (n *statsNames) dropLocked(s *namedStats, reason string) {
	s.forget()
	delete(n.byName, s.claim.Name)
	n.away--
	n.metrics.relayDropped.WithLabelValues(reason).Add(float64(s.watch.waiting()))
}

// gathersForOthers tells whether any watch has its home elsewhere.
func (n *statsNames) gathersForOthers() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.away > 0
}

// gather calls take with each watch whose home is the replica, in any order,
// until it returns false. It must not call n.
func (n *statsNames) gather(home agent.ID, take func(name string, w *statsWatch) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, s := range n.byName {
		if s.claim.home == home && !take(name, s.watch) {
			return
		}
	}
}

// merge adds what another replica has handed on to the watch of the name. If
// the watch has yet another home by now, it is handed on from here.
func (n *statsNames) merge(name string, reports []reportOf) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.byName[name]
	if s == nil {
		for _, r := range reports {
			n.metrics.relayDropped.WithLabelValues(droppedUnknown).Add(float64(r.reports))
		}
		return
	}
	for _, r := range reports {
		s.watch.report(r)
	}
}

// putBack adds to the watch of the name what it had before.
func (n *statsNames) putBack(name string, entries []*agentstatsv1.AgentStats) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.byName[name]; s != nil {
		s.watch.putBack(entries)
	} else {
		n.metrics.relayDropped.WithLabelValues(droppedUnknown).Add(float64(countReports(entries)))
	}
}

// waiting returns how many reports were not acked.
func (n *statsNames) waiting() (reports int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.byName {
		reports = saturatingAdd(reports, s.watch.waiting())
	}
	return reports
}

// setEarly sets what watches that are new here, and not elsewhere, begin with;
// nil: with nothing.
func (n *statsNames) setEarly(early *earlyStats) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.early = early
}
