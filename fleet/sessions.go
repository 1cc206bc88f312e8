package fleet

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// compareSessions returns 1 if a is newer than b, 0 if they are the same.
func compareSessions(a, b *agent.SessionRecord) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), bytes.Compare(a.Replica[:], b.Replica[:]))
}

// recordLocked has the agent's newest session, which is this replica's, told and
// written.
func (f *Fleet) recordLocked(e *entry) {
	f.writes.addSession(e)
	if f.peers != nil {
		f.peers.tellSessions(e)
	}
}

// closeRecordLocked records that the session with the epoch has ended. A
// fleet that is alone needs no record of it.
func (f *Fleet) closeRecordLocked(e *entry, epoch int64) {
	if f.peers == nil || e.newest.Epoch != epoch || e.newest.Replica != f.self() {
		return
	}
	e.newest.Open = false
	if e.leaving {
		return // the record goes with the agent, which may be back already
	}
	f.recordLocked(e)
}

// Reported records that the agent's report of this request was taken in: from
// then on this replica serves its series, and others let go of them.
func (r Request) Reported() {
	f, e := r.fleet, r.entry
	if f.peers == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.newest.Epoch != r.session.Epoch || e.newest.Replica != f.self() || e.newest.Reported {
		return
	}
	e.newest.Reported = true
	f.recordLocked(e)
}

// elsewhereLocked tells whether the agent has a session on another replica that
// lives.
func (f *Fleet) elsewhereLocked(e *entry) bool {
	return f.peers != nil && e.newest.Open && e.newest.Replica != f.self() && f.peers.replicas.Live(e.newest.Replica)
}

// wasElsewhereLocked tells whether the instance may have had a session on another
// replica since its last one here. The ordinals of these two tell of those that
// this replica never heard of; 0: there are none.
func (f *Fleet) wasElsewhereLocked(e *entry, last, ordinal int64) bool {
	if f.peers == nil {
		return false
	}
	if e.newest.Epoch != 0 && e.newest.Replica != f.self() {
		return true
	}
	return last != 0 && ordinal != last && ordinal != last+1
}

// openSeriesLocked begins a session of the agent's series.
func (f *Fleet) openSeriesLocked(e *entry, s agent.Session) {
	e.lingering = false
	f.series.Open(e.id, e.reg.Load().Identity(), s)
}

// closeSeriesLocked ends the session of the agent's series. Unless they go at
// once they are kept for its return, but not by a replica that is out of touch
// with the others: it would not hear that the agent is with one of them.
func (f *Fleet) closeSeriesLocked(e *entry, epoch int64, goodbye bool) {
	gone := goodbye || f.peers != nil && !f.peers.member.Load()
	f.series.Close(e.id, epoch, gone)
	e.lingering = !gone
}

// letGoLocked takes away series that were kept for the agent's return.
func (f *Fleet) letGoLocked(e *entry) {
	if e.lingering {
		e.lingering = false
		f.series.Remove(e.id)
	}
}

// adoptSessions takes in what other replicas say of sessions. It returns false if
// an agent of them is not known, or only since a revision after that one, or not yet
// as the incarnation that a record tells. One of an incarnation before that is late.
func (f *Fleet) adoptSessions(records []agent.SessionRecord, revision int64) (known bool) {
	known = true
	now := time.Now()
	for i := range records {
		if records[i].Replica == f.self() {
			continue
		}
		e, err := f.entry(records[i].Agent)
		if err != nil || e.reg.Load().Incarnation > revision {
			known = false
			continue
		}
		record := records[i]
		if is := e.reg.Load().Incarnation; record.Incarnation != 0 && record.Incarnation != is {
			known = known && record.Incarnation < is
			continue
		}
		record.Incarnation = 0 // it is the entry's
		e.turn.Lock()
		e.mu.Lock()
		f.adoptLocked(e, record, now)
		e.mu.Unlock()
		e.turn.Unlock()
	}
	return known
}

// adoptLocked takes in one record of another replica. If it is newer than what
// the agent has here, that is over: also if the other one has ended already, as
// the agent's next session then gets the highest epoch.
func (f *Fleet) adoptLocked(e *entry, record agent.SessionRecord, now time.Time) {
	before := e.newest
	order := compareSessions(&record, &before)
	if order < 0 {
		return
	}
	if order == 0 { // what one says late may be older
		record.Open = record.Open && before.Open
		record.Reported = record.Reported || before.Reported
	}
	if record == before {
		return
	}
	e.newest = record
	if s := e.session; s != nil {
		f.endLocked(s, EndTakeover)
		f.closeSeriesLocked(e, s.info.Epoch, false)
	}
	if record.Reported {
		f.letGoLocked(e)
	}
	f.presentLocked(e, now)
}

// sessionBatch bounds the records of one write.
const sessionBatch = 1000

// writeSessions writes the newest sessions of agents that have them here. What
// fails waits on.
func (f *Fleet) writeSessions(ctx context.Context) error {
	entries := f.writes.takeSessions()
	defer f.writes.sessionsDone()
	for i, part := range slices.Collect(slices.Chunk(entries, sessionBatch)) {
		if err := f.saveSessions(ctx, part); err != nil {
			f.metrics.writeErrors.WithLabelValues("sessions").Inc()
			for _, e := range entries[i*sessionBatch:] {
				f.writes.addSession(e)
			}
			return fmt.Errorf("save sessions: %w", err)
		}
	}
	return nil
}

func (f *Fleet) saveSessions(ctx context.Context, entries []*entry) error {
	records := make([]agent.SessionRecord, 0, len(entries))
	written := make([]*entry, 0, len(entries))
	for _, e := range entries {
		e.mu.Lock()
		if !e.gone && e.newest.Replica == f.self() {
			record := e.newest
			record.Incarnation = e.reg.Load().Incarnation
			records, written = append(records, record), append(written, e)
		}
		e.mu.Unlock()
	}
	if len(records) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.opts.WriteTimeout)
	defer cancel()
	if err := f.store.SaveSessions(ctx, records); err != nil {
		return err
	}
	for i, e := range written {
		e.noteRecorded(records[i].Epoch)
	}
	return nil
}

func (w *writes) addSession(e *entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sessions[e] = struct{}{}
	w.wakeUp()
}

// takeSessions removes and returns all that wait: they are being written until
// sessionsDone.
func (w *writes) takeSessions() []*entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sessions) == 0 {
		return nil
	}
	w.saving = slices.Collect(maps.Keys(w.sessions))
	clear(w.sessions)
	return w.saving
}

func (w *writes) sessionsDone() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saving = nil
}

// unwritten returns the agents whose newest session may not be in the database
// yet, some of them twice.
func (w *writes) unwritten() []*entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.AppendSeq(slices.Clone(w.saving), maps.Keys(w.sessions))
}
