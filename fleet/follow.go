package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// followPause is the least time between two looks for what other replicas wrote:
// strangers with wrong tokens cause one, and no more than that.
const followPause = 100 * time.Millisecond

// followTimeout bounds a look, which reads all registrations if many changed: 100,000
// take 8 s on a busy machine. A read that stands still the store ends earlier.
const followTimeout = 2 * time.Minute

// catchUpTimeout bounds the wait of a caller who is not known here.
const catchUpTimeout = 5 * time.Second

// catchUp returns when what other replicas had written at the call is read.
func (f *Fleet) catchUp(ctx context.Context) error {
	select {
	case f.peers.waiters <- struct{}{}:
		defer func() { <-f.peers.waiters }()
	default:
		f.metrics.waitersRefused.Inc()
		return fmt.Errorf("want at most %d lookups at once of callers that are not known here (--max-lookups)", f.opts.MaxLookups)
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	p := f.peers.join()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// followUntilDone follows the other replicas: when news come, when somebody waits
// for it, and every FollowInterval.
func (f *Fleet) followUntilDone(ctx context.Context) {
	ticker := time.NewTicker(f.opts.FollowInterval)
	defer ticker.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-f.peers.wake:
		case <-ticker.C:
		}
		select {
		case <-ctx.Done():
			f.peers.end(f.peers.begin(), ctx.Err())
			return
		case <-pause.C:
		}
		p := f.peers.begin()
		f.peers.end(p, f.follow(ctx))
		pause.Reset(followPause)
	}
}

// follow reads what other replicas wrote since the last time, and takes it in.
func (f *Fleet) follow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	revision, err := f.followRegistrations(ctx)
	if to := f.again.Swap(nil); to != nil {
		f.sessionsRead.Store(min(f.sessionsRead.Load(), to.sessions))
		f.statesRead.Store(min(f.statesRead.Load(), to.states))
	}
	if f.statesAgain.Swap(false) {
		f.statesRead.Store(0)
	}
	if err == nil {
		doubted := f.peers.takeDoubted()
		if err = f.followSessions(ctx, revision); err == nil {
			f.endDoubted(doubted)
		} else {
			f.peers.doubt(doubted...)
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
	return nil
}

// followRegistrations returns the revision of the registrations that it read.
func (f *Fleet) followRegistrations(ctx context.Context) (revision int64, err error) {
	if err := f.lockChanges(ctx); err != nil {
		return 0, err
	}
	defer f.unlockChanges()
	err = f.readRegistrations(ctx)
	return f.revision, err
}

// readRegistrations brings the roster up to what the database has. The caller
// may change the registrations.
func (f *Fleet) readRegistrations(ctx context.Context) error {
	seenAt := cursors{f.sessionsRead.Load(), f.statesRead.Load()}
	got, err := f.store.Registrations(ctx, f.revision)
	if err != nil {
		return fmt.Errorf("read registrations: %w", err)
	}
	before := f.seenAt
	f.seenAt = seenAt
	if got.Revision == f.revision && !got.Complete {
		return nil
	}
	if got.Complete {
		before = cursors{} // the database may be another one than it was
	}
	// An agent that was removed and came back is another one: first they go.
	removed := planRemoved(&f.roster, &got)
	f.commit(removed, f.cutOff(removed))
	changed := planChanged(&f.roster, &got)
	f.commit(changed, nil)
	f.noteRead(len(got.Agents))
	f.revision = got.Revision
	back := func(id agent.ID) bool { return changed.regs[id] != nil }
	if got.Complete || slices.ContainsFunc(removed.deregistered, back) {
		f.readAgain(before)
	}
	return nil
}

// cursors are how far other replicas' sessions and states were read.
type cursors struct{ sessions, states int64 }

// readAgain has sessions and states followed from there again. What was read since
// of an agent that was removed and came back went to the agent that it was before.
// The caller may change the registrations.
func (f *Fleet) readAgain(from cursors) {
	if to := f.again.Load(); to != nil {
		from = cursors{min(from.sessions, to.sessions), min(from.states, to.states)}
	}
	f.again.Store(&from)
}

// planRemoved removes the agents that other replicas removed, those that came back
// meanwhile included: nothing that was of them is theirs any more.
func planRemoved(r *roster, got *agent.Roster) *plan {
	p := &plan{}
	for _, id := range got.RemovedAgents {
		if r.agents[id] != nil {
			p.deregistered = append(p.deregistered, id)
		}
	}
	for i := range got.Agents {
		reg := &got.Agents[i]
		if e := r.agents[reg.ID]; e != nil && e.reg.Load().Incarnation != reg.Incarnation {
			p.deregistered = append(p.deregistered, reg.ID) // and came back
		}
	}
	if got.Complete {
		stay := make(map[agent.ID]struct{}, len(got.Agents))
		for i := range got.Agents {
			stay[got.Agents[i].ID] = struct{}{}
		}
		for id := range r.agents {
			if _, stays := stay[id]; !stays {
				p.deregistered = append(p.deregistered, id)
			}
		}
	}
	p.change.RemovedAgents = p.deregistered
	return p
}

// planChanged makes known what other replicas registered or changed. It removes
// the workspaces that they removed: no agent is in them any more.
func planChanged(r *roster, got *agent.Roster) *plan {
	p := &plan{
		regs:       make(map[agent.ID]*agent.Registration, len(got.Agents)),
		named:      make(map[agent.ID]struct{}, len(got.Agents)),
		workspaces: make(map[agent.ID]agent.Workspace, len(got.Workspaces)),
	}
	for _, w := range got.Workspaces {
		p.workspaces[w.ID] = w
	}
	for _, reg := range sorted(Set{Agents: got.Agents}).Agents {
		p.regs[reg.ID] = &reg
		p.named[reg.ID] = struct{}{}
		p.workspaces[reg.Workspace.ID] = reg.Workspace
	}
	p.planSiblings(r)
	p.planNamed(r, got)
	removed := got.RemovedWorkspaces
	if got.Complete {
		removed = slices.Collect(maps.Keys(r.workspaces))
	}
	for _, id := range removed {
		if _, stays := p.workspaces[id]; !stays && r.workspaces[id] != nil {
			p.change.RemovedWorkspaces = append(p.change.RemovedWorkspaces, id)
		}
	}
	return p
}

// planNamed has it noted who was named again on other replicas.
func (p *plan) planNamed(r *roster, got *agent.Roster) {
	for _, id := range got.NamedAgents {
		e := r.agents[id]
		if e == nil {
			continue
		}
		if p.regs[id] == nil {
			p.regs[id] = e.reg.Load()
		}
		p.named[id] = struct{}{}
	}
	for _, id := range got.NamedWorkspaces {
		if w := r.workspaces[id]; w != nil {
			if _, planned := p.workspaces[id]; !planned {
				p.workspaces[id] = w.Workspace
			}
		}
	}
}

// followSessions takes in the sessions that other replicas wrote. If it does not
// know one of their agents yet, or the agent was removed and came back since the
// revision of the registrations, which was read before, they are read again the
// next time: what was read may be of the agent that it was before.
func (f *Fleet) followSessions(ctx context.Context, revision int64) error {
	records, next, err := f.store.Sessions(ctx, f.sessionsRead.Load())
	if err != nil {
		return fmt.Errorf("read sessions: %w", err)
	}
	f.noteRecorded(records, revision)
	if f.adoptSessions(records, revision) {
		f.sessionsRead.Store(next)
	}
	return nil
}

// noteRecorded notes that these sessions are stored.
func (f *Fleet) noteRecorded(records []agent.SessionRecord, revision int64) {
	for i := range records {
		if e, err := f.entry(records[i].Agent); err == nil && e.reg.Load().Incarnation <= revision {
			e.noteRecorded(records[i].Epoch)
		}
	}
}

func (e *entry) noteRecorded(epoch int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.recorded = max(e.recorded, epoch)
}

// followStates takes in the states that were written, likewise.
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
		if f.adoptState(e, &states[i], now) {
			f.finishBuild(e)
		}
	}
	if known {
		f.statesRead.Store(next)
	}
	return nil
}

// adoptState takes in the parts of a state that are newer than what is known. It
// returns whether the agent's start may have come to its end.
func (f *Fleet) adoptState(e *entry, s *agent.State, now time.Time) (started bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f.noteStoredLocked(e, s.MaxEpoch())
	changed := false
	if s.LifecycleOrder.Compare(e.state.LifecycleOrder) > 0 {
		e.state.Lifecycle, e.state.LifecycleOrder = s.Lifecycle, s.LifecycleOrder
		changed = true
	}
	changed = e.state.SetStarted(s.Startup.StartedAt, s.StartedOrder) || changed
	if e.state.SetReady(s.Startup, s.ReadyOrder) {
		changed, started = true, true
	}
	for app, health := range s.AppHealth {
		changed = e.state.SetAppHealth(app, health, s.AppHealthOrder[app]) || changed
	}
	e.dropForeignApps()
	if s.NetworkOrder.Compare(e.state.NetworkOrder) > 0 {
		e.state.Network, e.state.NetworkOrder = s.Network, s.NetworkOrder
		changed = true
	}
	if changed {
		f.supersedeHoldsLocked(e, s.MaxEpoch())
		f.presentLocked(e, now)
		f.news.tell(e.id)
	}
	return started
}

// checkStanding notes how this replica stands among the others, and has the
// workspaces served accordingly; the agents follow one by one.
func (f *Fleet) checkStanding() {
	if f.peers == nil {
		return
	}
	member, leads := f.peers.replicas.Member(), f.peers.replicas.Leads()
	was, led := f.peers.member.Swap(member), f.peers.leads.Swap(leads)
	if member == was && leads == led {
		return
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, w := range f.roster.workspaces {
		w.up.mu.Lock()
		f.setUpLocked(w)
		w.up.mu.Unlock()
	}
}
