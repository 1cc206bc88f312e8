package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/plan"
)

// followPause is the least time between two passes. Wrong tokens ask for passes, too.
const followPause = 100 * time.Millisecond

// followTimeout bounds a pass. To read 100,000 registrations takes 8 s on a busy
// machine. The store ends a read that makes no progress earlier.
const followTimeout = 2 * time.Minute

// catchUpTimeout bounds the wait of a caller that this replica does not know.
const catchUpTimeout = 5 * time.Second

// catchUp blocks until what other replicas wrote before the call was read.
func (f *Fleet) catchUp(ctx context.Context) error {
	select {
	case f.peers.lookups <- struct{}{}:
		defer func() { <-f.peers.lookups }()
	default:
		f.metrics.lookupsRefused.Inc()
		return fmt.Errorf("want at most %d lookups at once of callers that are not known here (--max-lookups)", f.opts.Load().MaxLookups)
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	p := f.peers.passes.Join()
	select {
	case <-p.Done():
		return p.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// runFollower makes a pass after each notification, for each waiting caller, and every
// FollowInterval, until ctx is cancelled.
func (f *Fleet) runFollower(ctx context.Context) {
	f.peers.passes.Run(ctx, f.opts.Load().FollowInterval, followPause, func(ctx context.Context) error {
		err := f.follow(ctx)
		if err == nil {
			f.peers.following.Works(context.Background())
		} else if !errors.Is(err, context.Canceled) { // cancelled: Run ends
			f.peers.following.Failed(context.Background(), err)
		}
		return err
	})
}

// follow reads and applies what other replicas wrote since the last pass.
func (f *Fleet) follow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	began := time.Now()
	revision, err := f.followRegistrations(ctx)
	if to := f.rereadFrom.Swap(nil); to != nil {
		f.sessionsRead.Store(min(f.sessionsRead.Load(), to.sessions))
		f.statesRead.Store(min(f.statesRead.Load(), to.states))
	}
	if f.rereadStates.Swap(false) {
		f.statesRead.Store(0)
	}
	if err == nil {
		suspects := f.peers.drainSuspects()
		if err = f.followSessions(ctx, revision); err == nil {
			f.checkSuspects(suspects)
		} else {
			f.peers.addSuspects(suspects...)
		}
	}
	if err == nil {
		err = f.followStates(ctx, revision)
	}
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			f.metrics.followErrors.Inc()
		}
		return fmt.Errorf("follow the other replicas: %w", err)
	}
	f.pending.Followed(began)
	return nil
}

// followRegistrations returns the revision that it read.
func (f *Fleet) followRegistrations(ctx context.Context) (revision int64, err error) {
	if err := f.lockChanges(ctx); err != nil {
		return 0, err
	}
	defer f.unlockChanges()
	err = f.readRegistrations(ctx)
	return f.revision, err
}

// readRegistrations reads and applies the changes since revision. The caller holds
// changeSem.
func (f *Fleet) readRegistrations(ctx context.Context) error {
	seenAt := cursors{f.sessionsRead.Load(), f.statesRead.Load()}
	got, err := f.store.Registrations(ctx, f.revision)
	if err != nil {
		return fmt.Errorf("read registrations: %w", err)
	}
	before := f.cursorsAtRead
	f.cursorsAtRead = seenAt
	if got.Revision == f.revision && !got.Complete {
		return nil
	}
	if got.Complete {
		before = cursors{} // the database may have been replaced
	}
	// An agent that was removed and came back is removed first.
	removed := plan.FollowRemovals(&f.registry, &got)
	f.commit(removed, f.startRemoval(removed))
	changed := plan.FollowChanges(&f.registry, &got)
	f.commit(changed, nil)
	f.checkReadSizes(len(got.Agents))
	f.revision = got.Revision
	back := func(id agent.ID) bool { return changed.Agents[id] != nil }
	if got.Complete || slices.ContainsFunc(removed.Deregistered, back) {
		f.scheduleReread(before)
	}
	return nil
}

// cursors are positions in the sessions and states of the database.
type cursors struct{ sessions, states int64 }

// scheduleReread makes the next follow read sessions and states again from there. Rows
// of an agent that was removed and came back were applied to its earlier incarnation.
// The caller holds changeSem.
func (f *Fleet) scheduleReread(from cursors) {
	if to := f.rereadFrom.Load(); to != nil {
		from = cursors{min(from.sessions, to.sessions), min(from.states, to.states)}
	}
	f.rereadFrom.Store(&from)
}

// followSessions applies the sessions that other replicas wrote. The registrations were
// read before, as of revision. If a record's agent is unknown, or came back after that
// revision, the same rows are read again by the next pass.
func (f *Fleet) followSessions(ctx context.Context, revision int64) error {
	records, next, err := f.store.Sessions(ctx, f.sessionsRead.Load())
	if err != nil {
		return fmt.Errorf("read sessions: %w", err)
	}
	f.noteRecordedEpochs(records, revision)
	if f.applySessions(records, revision) {
		f.sessionsRead.Store(next)
	}
	return nil
}

// noteRecordedEpochs notes that these sessions are stored.
func (f *Fleet) noteRecordedEpochs(records []agent.SessionRecord, revision int64) {
	for i := range records {
		if e, err := f.entry(records[i].Agent); err == nil && e.reg.Load().Incarnation <= revision {
			e.noteRecordedEpoch(records[i].Epoch)
		}
	}
}

func (e *entry) noteRecordedEpoch(epoch int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	past := e.historyLocked()
	past.recordedEpoch = max(past.recordedEpoch, epoch)
}

// followStates applies the written states in the same way.
func (f *Fleet) followStates(ctx context.Context, revision int64) error {
	states, next, err := f.store.States(ctx, f.statesRead.Load())
	if err != nil {
		return fmt.Errorf("read states: %w", err)
	}
	known := true
	now := time.Now()
	for i := range states {
		e, err := f.entry(states[i].Agent)
		if err != nil || e.reg.Load().Incarnation > revision {
			known = false
			continue
		}
		if f.applyState(e, &states[i], now) {
			f.queueFinishedBuild(e)
		}
	}
	if known {
		f.statesRead.Store(next)
	}
	return nil
}

// applyState applies the newer parts of a state. It returns whether the agent's start
// may have ended.
func (f *Fleet) applyState(e *entry, s *agent.State, now time.Time) (started bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f.noteStoredEpochLocked(e, s.MaxEpoch())
	newest := e.stateLocked(&agent.State{})
	if e.active != nil && s.LifecycleOrder.Compare(newest.LifecycleOrder) > 0 {
		e.active.state.lifecycleFrom = agent.Instance{}
	}
	changed, started := newest.Merge(s)
	e.dropForeignApps(newest)
	if e.active == nil {
		e.historyLocked().state = kept.StateOf(newest)
	}
	if changed {
		f.supersedePendingLocked(e, s.MaxEpoch())
		f.publishPresenceLocked(e, now)
		f.watchers.Notify(e.id)
	}
	return started
}
