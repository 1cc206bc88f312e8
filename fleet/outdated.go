package fleet

import (
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// An epoch comes from a replica's clock. So that of a new process can be below that of
// the process before it, if it connects to a replica whose clock is slower and which
// heard nothing of the agent: its clock is wrong, or it had no way to the others.
// The database then keeps the values of the higher epoch. Whoever finds that out
// calls Supersede. What lost stays unacked, the instance is forgotten, and its
// session ends, so that the agent says all of it again in a session whose epoch is
// above the stored one.
//
// So it is with an agent that was removed and came back, of which this replica has
// not heard: what the agent before said is not stored, epoch is 0, and following the
// registrations ends the session.
//
// The other way round, what a session with a high epoch said can wait, on a replica
// that cannot write, while a newer process has a lower epoch elsewhere, and has its
// values stored and acked. So what is written carries what its session knew of those
// before it (agent.Order), and takes the place only of what these stored: of two
// sessions that did not know of each other the first that writes wins. A session knows
// what is stored when it opens, and the one before it, of which the agent, this
// replica's memory or news tell; not what is not stored of those before that: between
// their epochs another replica may have begun another one.

// Supersede implements agent.Tracker.
func (t *tracker) Supersede(epoch int64) { t.fleet.supersede(t, epoch) }

// supersede forgets the instance of t, and ends its session, unless a newer session
// on another replica or another registration is the reason: that is looked for first,
// as then the agent must not be asked to come back.
func (f *Fleet) supersede(t *tracker, epoch int64) {
	e := t.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	f.supersedeLocked(t, epoch)
}

func (f *Fleet) supersedeLocked(t *tracker, epoch int64) {
	e := t.entry
	e.stored = max(e.stored, epoch)
	e.forgetLocked(t)
	if epoch != 0 && epoch < t.epoch {
		f.outbidLocked(e)
	}
	s := e.session
	switch {
	case s == nil || s.tracker != t:
	case f.peers == nil:
		f.endOutdatedLocked(e)
	default:
		f.peers.doubt(e)
	}
}

// outbidLocked is called when what is stored has an epoch below that of a session of
// which this replica knew. If the newest was on another replica, and that ended before
// it could write it, nobody would learn of it but this one, which would take it for
// the newest for ever. So this replica has a record above it, which ends sessions with
// lower epochs: their agents open others above.
func (f *Fleet) outbidLocked(e *entry) {
	if f.peers == nil || e.newest.Replica == f.self() || e.leaving {
		return
	}
	e.newest = agent.SessionRecord{
		Agent: e.id, Epoch: nextEpoch(time.Unix(0, 0), e.newest.Epoch, f.self()), Replica: f.self(),
	}
	f.recordLocked(e)
	f.presentLocked(e, time.Now())
}

// supersedeHoldsLocked is called when stored parts, of at most this epoch, took the
// place of parts in memory: what these were is not there to be written any more, so
// nobody's ack may wait for the next write. Who said something under an epoch below
// must say it again.
func (f *Fleet) supersedeHoldsLocked(e *entry, epoch int64) {
	for _, h := range slices.Clone(e.holds) {
		if h.epoch < epoch {
			f.supersedeLocked(h.tracker, epoch)
		}
	}
}

// supersedeFirst is called when a part of a state lost against one with a lower epoch,
// which the session that said it did not know of. Memory would keep it, as it is newer
// by its epoch: so all parts are forgotten, whoever waits for one of them has to say
// it again, and the stored ones are read. The holds stay: no ack passes them.
func (f *Fleet) supersedeFirst(w stateWrite, stored int64) {
	e := w.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range slices.Concat(w.holds, e.holds) {
		f.supersedeLocked(h.tracker, stored)
	}
	e.stored = max(e.stored, stored)
	e.state = agent.State{Agent: e.id}
	f.statesAgain.Store(true)
	if f.peers != nil {
		f.peers.nudge()
	}
}

func (e *entry) forgetLocked(t *tracker) {
	if i := slices.Index(e.instances, t); i >= 0 {
		e.dropInstanceLocked(i)
	}
}

// endOutdatedLocked ends the session of an instance that is forgotten.
func (f *Fleet) endOutdatedLocked(e *entry) {
	s := e.session
	f.endLocked(s, EndOutdated)
	f.closeSeriesLocked(e, s.info.Epoch, false)
	f.presentLocked(e, time.Now())
}

// endDoubted ends the sessions of instances that are forgotten. What other replicas
// wrote of sessions was read since: those of which one is newer have ended.
func (f *Fleet) endDoubted(doubted []*entry) {
	for _, e := range doubted {
		e.mu.Lock()
		if s := e.session; s != nil && !slices.Contains(e.instances, s.tracker) {
			f.endOutdatedLocked(e)
		}
		e.mu.Unlock()
	}
}

// noteStoredLocked takes in that what is stored of the agent has this epoch. A
// session whose epoch is below it ends.
func (f *Fleet) noteStoredLocked(e *entry, epoch int64) {
	e.stored = max(e.stored, epoch)
	if s := e.session; s != nil && s.info.Epoch < epoch {
		e.forgetLocked(s.tracker)
		f.endOutdatedLocked(e)
	}
}

// doubt has the sessions of these agents looked at when those of other replicas are
// read.
func (p *peers) doubt(entries ...*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range entries {
		p.doubted[e] = struct{}{}
	}
	if len(entries) > 0 {
		p.nudge()
	}
}

// takeDoubted returns whose sessions are to be looked at.
func (p *peers) takeDoubted() []*entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := slices.Collect(maps.Keys(p.doubted))
	clear(p.doubted)
	return taken
}
