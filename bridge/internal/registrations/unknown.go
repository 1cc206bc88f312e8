package registrations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	"github.com/coder/agentstatsd/internal/backoff"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxSingleReads is the number of unknown agents up to which their workspaces are read
	// one by one; above it all are listed.
	maxSingleReads = 20
	// gatherTime is the time in which agents that connect together are looked for together.
	gatherTime = 200 * time.Millisecond
	// refusalTime is how long a refusal by the service, of before an agent was registered,
	// may be on its way.
	refusalTime = 500 * time.Millisecond
)

// triesAgain spaces the reads for an agent that coderd does not have as a current one,
// such as one that survived its workspace's stop.
var triesAgain = backoff.Backoff{Min: 30 * time.Second, Max: 10 * time.Minute}

// unknown are agents that are not registered.
type unknown struct {
	// waiting are those to look for, with their workspaces; zero: not known.
	waiting map[uuid.UUID]uuid.UUID
	// missed are those that were looked for in vain.
	missed map[uuid.UUID]missed
}

// missed says when an agent is looked for again.
type missed struct {
	times int
	until time.Time
}

func newUnknown() unknown {
	return unknown{waiting: make(map[uuid.UUID]uuid.UUID), missed: make(map[uuid.UUID]missed)}
}

// miss notes that an agent was looked for in vain.
func (u *unknown) miss(agent uuid.UUID, now time.Time, limit int) {
	m := u.missed[agent]
	if m.times == 0 && len(u.missed) >= limit {
		return
	}
	m.times++
	m.until = now.Add(triesAgain.Delay(m.times))
	u.missed[agent] = m
}

// synced forgets agents that a sync found, and those that have not been seen for long. at
// is when the sync began.
func (u *unknown) synced(at time.Time, known map[uuid.UUID]registered) {
	for id := range u.waiting {
		if _, found := known[id]; found {
			delete(u.waiting, id)
		}
	}
	for id, m := range u.missed {
		if _, found := known[id]; found || at.Sub(m.until) > triesAgain.Max {
			delete(u.missed, id)
		}
	}
}

// Connected has an agent registered at once that has connected, unless it is known. The
// workspace may be zero: not known. It does not block.
func (r *Registrations) Connected(agent, workspace uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.agents[agent]; !known {
		r.addUnknownLocked(agent, workspace)
	}
}

// Unknown has an agent registered at once that the service does not know, whatever is
// known here: another bridge may have removed it. It does nothing for one that was
// registered just now. It does not block.
func (r *Registrations) Unknown(agent, workspace uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.agents[agent].registeredAt) < refusalTime {
		return
	}
	delete(r.agents, agent)
	r.addUnknownLocked(agent, workspace)
}

func (r *Registrations) addUnknownLocked(agent, workspace uuid.UUID) {
	if _, waits := r.unknown.waiting[agent]; waits || time.Now().Before(r.unknown.missed[agent].until) {
		return
	}
	if len(r.unknown.waiting) >= r.opts.MaxUnknown {
		r.metrics.unknown.WithLabelValues(agentBeyond).Inc()
		return
	}
	r.unknown.waiting[agent] = workspace
	ask(r.wake)
}

// ask puts an element into the channel, unless it has one.
func ask(wanted chan struct{}) {
	select {
	case wanted <- struct{}{}:
	default:
	}
}

// runUnknown registers agents that wait for it.
func (r *Registrations) runUnknown(ctx context.Context) {
	select {
	case <-r.looked:
	case <-ctx.Done():
		return
	}
	retries := backoff.Backoff{Min: time.Second, Max: time.Minute}
	for failures := 0; ; {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		if !backoff.Sleep(ctx, gatherTime) {
			return
		}
		err := r.registerUnknown(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures = 0
			continue
		case errors.Is(err, coder.ErrUnauthorized):
			r.waitForToken(ctx, err)
		default:
			failures++
			r.unregistered.Log(ctx, r.log, slog.LevelWarn, "attempts", 1, "agents that have connected are not registered", "error", err)
			retries.Wait(ctx, failures)
		}
		ask(r.wake) // those that wait are looked for again
	}
}

// registerUnknown registers the agents that wait. After an error they still wait.
func (r *Registrations) registerUnknown(ctx context.Context) error {
	waiting, listed := r.takeUnknown()
	if listed || len(waiting) == 0 {
		return nil
	}
	known := make(map[uuid.UUID]registered)
	var agents []*agentstatsv1.AgentRegistration
	var workspaces []*agentstatsv1.Workspace
	hidden := make(map[uuid.UUID]bool) // of each that was read
	for _, id := range waiting {
		if _, again := hidden[id]; again {
			continue
		}
		w, err := r.coder.Workspace(ctx, id)
		hidden[id] = errors.Is(err, coder.ErrNotFound)
		switch {
		case hidden[id]:
			continue
		case err != nil:
			return err
		}
		regs, workspace := messagesOf(w)
		agents = append(agents, regs...)
		if len(regs) == 0 && !w.IsDeleted() {
			workspaces = append(workspaces, workspace)
		}
		noteKnown(known, w)
	}
	if len(agents)+len(workspaces) > 0 {
		ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
		defer cancel()
		if _, err := r.service.Register(ctx, agents, workspaces); err != nil {
			return fmt.Errorf("%w: %w", errService, err)
		}
	}
	r.noteUnknown(waiting, known, hidden)
	return nil
}

// takeUnknown returns the agents that wait, with their workspaces. If there are many, or
// the workspace of one is not known, it asks for a sync instead.
func (r *Registrations) takeUnknown() (waiting map[uuid.UUID]uuid.UUID, listed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	waiting = make(map[uuid.UUID]uuid.UUID, len(r.unknown.waiting))
	for id, workspace := range r.unknown.waiting {
		waiting[id] = workspace
		listed = listed || workspace == uuid.Nil
	}
	listed = listed || len(waiting) > maxSingleReads
	if listed {
		for id := range waiting {
			r.unknown.miss(id, now, r.opts.MaxUnknown)
		}
		clear(r.unknown.waiting)
		r.metrics.unknown.WithLabelValues(agentListed).Add(float64(len(waiting)))
		ask(r.wantSync)
	}
	return waiting, listed
}

// noteUnknown remembers which of the agents that waited are registered now. hidden are the
// workspaces that coderd does not show.
func (r *Registrations) noteUnknown(waited map[uuid.UUID]uuid.UUID, known map[uuid.UUID]registered, hidden map[uuid.UUID]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resumeLocked()
	now := time.Now()
	for id, workspace := range waited {
		delete(r.unknown.waiting, id)
		if _, found := known[id]; found {
			delete(r.unknown.missed, id)
			r.metrics.unknown.WithLabelValues(agentRegistered).Inc()
			continue
		}
		outcome := agentNotCurrent
		if hidden[workspace] {
			outcome, r.hiddenAt = agentHidden, now
		}
		r.unknown.miss(id, now, r.opts.MaxUnknown)
		r.metrics.unknown.WithLabelValues(outcome).Inc()
	}
	for id, k := range known {
		k.registeredAt = now
		r.agents[id] = k
	}
}
