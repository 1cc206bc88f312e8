package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// queueSessionLocked queues the agent's newest session, which is this replica's, for
// publication and for the database.
func (f *Fleet) queueSessionLocked(e *entry) {
	f.queue.AddSession(e)
	if f.peers != nil {
		f.peers.outbox.AddSessions(e)
	}
}

// closeRecordLocked records the end of the session with the epoch. A replica that is
// alone needs no record of it.
func (f *Fleet) closeRecordLocked(e *entry, epoch int64) {
	past := e.historyLocked()
	if f.peers == nil || past.newest.Epoch != epoch || past.newest.Replica != f.self() {
		return
	}
	past.newest.Open = false
	if e.phase != phaseRegistered {
		return // the record is removed with the agent, which may be back already
	}
	f.queueSessionLocked(e)
}

// lastReport is when an agent made its newest report that was handled here, and who sent
// it.
type lastReport struct {
	at   time.Time
	from agent.Instance
}

// IsOlderReport reports whether a report was made before the newest one, which another
// relay of the agent sent. It was made so long before its receipt as age says.
func (r Request) IsOlderReport(age time.Duration) bool {
	last := r.entry.past.lastReport
	return last != nil && r.session.hello.Relayed && last.from != r.Instance() && r.now.Add(-age).Before(last.at)
}

// ReportOrder returns the order of a report for those who watch reports. A report that a
// relay could not send before its session opened is of the time at which it was made. So it
// does not count as newer than one of another relay.
func (r Request) ReportOrder(age time.Duration) agent.Order {
	order, made := r.order, r.now.Add(-age)
	switch {
	case !r.session.hello.Relayed:
	case r.IsOlderReport(age):
		order.Epoch = 1
	case made.Before(r.session.openedAt):
		order.Epoch = min(order.Epoch, made.UnixNano())
	}
	return order
}

// MarkReported records that a report of the session was handled, which is older than its
// receipt by age. From then on this replica publishes the agent's series, and the others
// remove them.
func (r Request) MarkReported(age time.Duration) {
	f, e := r.fleet, r.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	past := e.past
	if past.lastReport == nil {
		past.lastReport = &lastReport{}
	}
	*past.lastReport, past.unreported = lastReport{r.now.Add(-age), r.Instance()}, false
	if f.peers == nil {
		return
	}
	if past.newest.Epoch != r.Epoch() || past.newest.Replica != f.self() || past.newest.Reported {
		return
	}
	past.newest.Reported = true
	f.queueSessionLocked(e)
}

// connectedRemotelyLocked returns whether the agent has a session on another live
// replica.
func (f *Fleet) connectedRemotelyLocked(e *entry) bool {
	if f.peers == nil || e.past == nil {
		return false
	}
	newest := &e.past.newest
	return newest.Open && newest.Replica != f.self() && f.peers.replicas.Live(newest.Replica)
}

// mayHaveMovedLocked returns whether the instance may have had a session on another
// replica since its last one here. A gap between the ordinals of the two reveals a
// session that this replica never read of. An ordinal of 0 reveals nothing.
func (f *Fleet) mayHaveMovedLocked(e *entry, last, ordinal int64) bool {
	if f.peers == nil {
		return false
	}
	if newest := e.history().newest; newest.Epoch != 0 && newest.Replica != f.self() {
		return true
	}
	return last != 0 && ordinal != last && ordinal != last+1
}

// openSeriesLocked opens a session of the agent's series.
func (f *Fleet) openSeriesLocked(e *entry, s agent.Session) {
	e.historyLocked().seriesRetained = false
	f.series.Open(e.id, e.reg.Load().Identity(), s)
}

// closeSeriesLocked closes the session of the agent's series. It retains them for a
// reconnect, unless they go at once. A replica that is no member removes them: it
// would not notice that the agent connects to another one.
func (f *Fleet) closeSeriesLocked(e *entry, epoch int64, goodbye bool) {
	remove := goodbye || f.peers != nil && !f.peers.shares.Member()
	f.series.Close(e.id, epoch, remove)
	e.historyLocked().seriesRetained = !remove
}

// dropRetainedSeriesLocked removes series that were retained for a reconnect.
func (f *Fleet) dropRetainedSeriesLocked(e *entry) {
	if e.past != nil && e.past.seriesRetained {
		e.past.seriesRetained = false
		f.series.Remove(e.id)
	}
}

// applySessions applies session records of other replicas. It returns false if a record
// may have to be read again. Its agent is unknown, was registered after that revision,
// or has a later incarnation than this replica knows. A record of an earlier
// incarnation is dropped.
func (f *Fleet) applySessions(records []agent.SessionRecord, revision int64) (known bool) {
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
		record.Incarnation = 0 // entries do not keep it
		e.requestMu.Lock()
		e.mu.Lock()
		f.applySessionLocked(e, record, now)
		e.mu.Unlock()
		e.requestMu.Unlock()
	}
	return known
}

// applySessionLocked applies one record of another replica. A newer record ends the
// agent's session here, even if the other session has ended: the agent's next one
// then gets the highest epoch.
func (f *Fleet) applySessionLocked(e *entry, record agent.SessionRecord, now time.Time) {
	past := e.historyLocked()
	before := past.newest
	order := record.Compare(&before)
	if order < 0 {
		return
	}
	if order == 0 { // of one session: what is closed or reported stays so
		record.Open = record.Open && before.Open
		record.Reported = record.Reported || before.Reported
		record.Relayed = record.Relayed || before.Relayed
	}
	if record == before {
		return
	}
	past.newest, past.unwritten, past.endedAt = record, 0, now.UnixNano()
	if record.Relayed != before.Relayed {
		f.watchers.Notify(e.id)
	}
	if before.Replica == f.self() && order > 0 {
		// The record of the other replica may never be written: it can be killed before.
		// This one's would stay open in the database, for all who read it later.
		past.endedEpoch = before.Epoch
		f.queue.AddSession(e)
	}
	if s := e.liveLocked(); s != nil {
		f.endSessionLocked(s, EndTakeover)
		f.closeSeriesLocked(e, s.info.Epoch, false)
	}
	if record.Reported {
		f.dropRetainedSeriesLocked(e)
	}
	f.publishPresenceLocked(e, now)
}

// sessionBatch bounds the records of one write.
const sessionBatch = 1000

// writeSessions writes the queued sessions. What fails is queued again.
func (f *Fleet) writeSessions(ctx context.Context) error {
	entries := f.queue.DrainSessions()
	defer f.queue.FinishSessions()
	for i, part := range slices.Collect(slices.Chunk(entries, sessionBatch)) {
		if err := f.saveSessions(ctx, part); err != nil {
			f.metrics.writeErrors.WithLabelValues("sessions").Inc()
			for _, e := range entries[i*sessionBatch:] {
				f.queue.AddSession(e)
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
		past := e.history()
		record := past.newest
		if record.Replica != f.self() {
			record = agent.SessionRecord{Agent: e.id, Epoch: past.endedEpoch, Replica: f.self()}
		}
		if e.phase != phaseRemoved && record.Epoch != 0 {
			record.Incarnation = e.reg.Load().Incarnation
			records, written = append(records, record), append(written, e)
		}
		e.mu.Unlock()
	}
	if len(records) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.opts.Load().WriteTimeout)
	defer cancel()
	replaced, err := f.store.SaveSessions(ctx, records)
	if err != nil {
		return err
	}
	before := make(map[agent.ID]agent.SessionRecord, len(replaced))
	for _, r := range replaced {
		before[r.Agent] = r
	}
	for i, e := range written {
		if stored, registered := before[e.id]; registered {
			f.confirmSessions(e, records[i].Epoch, stored)
		}
	}
	return nil
}
