package fleet

import (
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// This file handles values that lose against a stored epoch.
//
// A new session with a low epoch. Epochs come from the clocks of replicas. A replica
// with a slow clock that knows nothing of an agent's last session may assign an epoch
// below it. The database then keeps the values of the higher epoch, and the writer
// calls Supersede. The lost values stay unacked, the instance is forgotten, and its
// session ends. The agent's next session has an epoch above the stored one, and sends
// all values again.
//
// Such a session may meet no value of the higher epoch. A session that knows a stored
// epoch takes all below it for older, and would replace what was acked here. So acks
// are held until a write of the session's record has read the one stored before. If
// that is lower the session is confirmed: whoever knows a higher stored epoch opens
// later. If it is higher, the held values count as lost. Read on the server that
// takes writes: a standby could be behind.
//
// An agent that was removed and registered again. Values of its earlier incarnation
// are not stored: the writer calls Supersede with epoch 0. The session ends when this
// replica follows the registrations.
//
// An old session with a high epoch. A replica that cannot write keeps its values.
// Meanwhile a newer process of the agent gets a lower epoch on another replica, and
// its values are stored and acked. So each value carries what its session knew of
// those before (agent.Order), and replaces only values of those. Of two sessions that
// did not know of each other the first writer wins. A session knows which sessions
// are stored when it opens, and the one before it: from the agent, from memory or
// from notifications. It does not know earlier unstored epochs, because another
// replica may have assigned one between them. So the third session of an agent within the
// time in which records are written and read may lose against a value of the first. It
// ends, though it is the newest, and the agent sends its values again in another one.

// confirmSessions is called when this replica wrote its session with the epoch. stored
// is the record before, which may be its own if an answer was lost.
func (f *Fleet) confirmSessions(e *entry, epoch int64, stored agent.SessionRecord) {
	e.mu.Lock()
	defer e.mu.Unlock()
	past := e.historyLocked()
	past.recordedEpoch = max(past.recordedEpoch, epoch, stored.Epoch)
	for _, i := range e.instancesLocked() {
		switch first := i.unconfirmed; {
		case first == 0 || first > epoch:
		case stored.Epoch < first || stored.Epoch == first && stored.Replica == f.self():
			i.confirmLocked(epoch)
		default:
			f.supersedeLocked(i, stored.Epoch)
		}
	}
}

// supersede forgets the instance. It ends the instance's session, unless another
// replica has a newer session or registration of the agent. Those are read first:
// then the agent must not be asked to reconnect.
func (f *Fleet) supersede(i *instance, epoch int64) {
	e := i.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	f.supersedeLocked(i, epoch)
}

func (f *Fleet) supersedeLocked(i *instance, epoch int64) {
	e := i.entry
	past := e.historyLocked()
	past.storedEpoch = max(past.storedEpoch, epoch)
	e.forgetInstanceLocked(i)
	if epoch != 0 && epoch < i.epoch {
		f.raiseEpochLocked(e)
	}
	s := e.liveLocked()
	switch {
	case s == nil || s.instance != i:
	case f.peers == nil:
		f.endOutdatedLocked(e)
	default:
		f.peers.addSuspects(e)
	}
}

// raiseEpochLocked is called when the stored epoch is, or may be, below that of a
// session known to this replica. If that session was on another replica and was never
// written, only this replica knows it, and would treat it as the newest for ever. So
// this replica makes a closed record above it, which ends sessions with lower epochs on all
// replicas. Their agents reconnect with epochs above it.
func (f *Fleet) raiseEpochLocked(e *entry) {
	past := e.historyLocked()
	if f.peers == nil || past.newest.Replica == f.self() || e.phase != phaseRegistered {
		return
	}
	past.newest = agent.SessionRecord{
		Agent: e.id, Epoch: agent.NextEpoch(time.Unix(0, 0), past.newest.Epoch, f.self(), e.reg.Load().Incarnation), Replica: f.self(),
		Reported: past.newest.Reported, // others retain no series from before that report
	}
	f.queueSessionLocked(e)
	f.publishPresenceLocked(e, time.Now())
}

// supersedePendingLocked is called when stored parts, of at most this epoch, replaced
// parts in memory. The replaced values will never be written, so no ack may wait for
// the next write. Instances that sent them under a lower epoch must send them again.
func (f *Fleet) supersedePendingLocked(e *entry, epoch int64) {
	for _, ack := range e.pendingAcksLocked() {
		if ack.Epoch < epoch {
			f.supersedeLocked(ack.Instance, epoch)
		}
	}
}

// supersedeByFirst is called when a part of a state lost against one with a lower
// epoch that its session did not know of. Memory would keep the lost part, as its
// epoch is higher. So all parts are dropped, the stored ones are read again, and the
// instances with pending parts must send them again. Their acks stay pending.
func (f *Fleet) supersedeByFirst(w stateWrite, stored int64) {
	e := w.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ack := range slices.Concat(w.pendingAcks, e.pendingAcksLocked()) {
		f.supersedeLocked(ack.Instance, stored)
	}
	past, a := e.historyLocked(), e.activeLocked()
	past.storedEpoch = max(past.storedEpoch, stored)
	a.state.newest, a.state.lifecycleFrom = agent.State{Agent: e.id}, agent.Instance{}
	f.rereadStates.Store(true)
	if f.peers != nil {
		f.peers.passes.Ask()
	}
}

// endOutdatedLocked ends the session of a forgotten instance.
func (f *Fleet) endOutdatedLocked(e *entry) {
	s := e.liveLocked()
	f.endSessionLocked(s, EndOutdated)
	f.closeSeriesLocked(e, s.info.Epoch, false)
	f.publishPresenceLocked(e, time.Now())
}

// checkSuspects ends the sessions of forgotten instances, and raises epochs that nobody
// will write. The sessions of other replicas were read before: a session that lost
// against a newer one has ended.
func (f *Fleet) checkSuspects(suspects []*entry) {
	for _, e := range suspects {
		e.mu.Lock()
		if s := e.liveLocked(); s != nil && !slices.Contains(e.instancesLocked(), s.instance) {
			f.endOutdatedLocked(e)
		}
		if e.history().unwritten >= unwrittenScans && f.isUnwrittenLocked(e) {
			f.raiseEpochLocked(e)
		}
		e.mu.Unlock()
	}
}

// unwrittenScans is the number of scans after which nobody is expected to write a
// session. Replicas that start, or can reach the database again, are known to be alive
// earlier.
const unwrittenScans = 15

// countUnwrittenLocked counts the scans that found the newest session unwritten.
// Another replica, which had no notification of it, may have opened a session below
// it. That one ends when this replica raises the epoch: see checkSuspects.
func (f *Fleet) countUnwrittenLocked(e *entry) {
	switch {
	case e.past == nil:
	case !f.isUnwrittenLocked(e):
		e.past.unwritten = 0
	case e.past.unwritten < unwrittenScans:
		e.past.unwritten++
	default:
		f.peers.addSuspects(e)
	}
}

// isUnwrittenLocked returns whether the newest session is known from notifications
// only, and its replica is gone.
func (f *Fleet) isUnwrittenLocked(e *entry) bool {
	if e.past == nil {
		return false
	}
	newest := &e.past.newest
	return newest.Epoch > e.past.recordedEpoch && f.peers != nil && newest.Replica != f.self() &&
		f.peers.shares.Member() && !f.peers.replicas.Live(newest.Replica)
}

// noteStoredEpochLocked notes that the database has a value of the agent with this
// epoch. A session with a lower epoch ends.
func (f *Fleet) noteStoredEpochLocked(e *entry, epoch int64) {
	past := e.historyLocked()
	past.storedEpoch = max(past.storedEpoch, epoch)
	if s := e.liveLocked(); s != nil && s.info.Epoch < epoch {
		e.forgetInstanceLocked(s.instance)
		f.endOutdatedLocked(e)
	}
}

// addSuspects marks sessions to be checked after the next read of other replicas'
// sessions.
func (p *peers) addSuspects(entries ...*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range entries {
		p.suspects[e] = struct{}{}
	}
	if len(entries) > 0 {
		p.passes.Ask()
	}
}

// drainSuspects returns the agents whose sessions are to be checked.
func (p *peers) drainSuspects() []*entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	drained := slices.Collect(maps.Keys(p.suspects))
	clear(p.suspects)
	return drained
}
