package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/notification"
)

// writeBatch bounds the states of one write. SQLite takes about 30 ms for 1,000
// small rows, which is the longest that one state waits for others.
const writeBatch = 1000

func (f *Fleet) writeFinally(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.opts.Load().WriteTimeout)
	defer cancel()
	if err := f.write(ctx); err != nil {
		f.log.Error("the last states of agents are not written", "error", err, "agents", f.queue.StateCount())
	}
}

// write writes all that is queued. What fails stays queued. Acks of states wait for
// the sessions.
func (f *Fleet) write(ctx context.Context) error {
	err := f.writeSessions(ctx)
	if err == nil {
		err = f.writeStates(ctx)
	}
	if err == nil {
		err = f.writeBuilds(ctx)
	}
	f.metrics.statesPending.Set(float64(f.queue.StateCount()))
	f.queue.SetError(err)
	return err
}

// stateWrite is a state that is being written, with the acks that wait for it.
type stateWrite struct {
	entry       *entry
	state       agent.State
	pendingAcks pendingAcks
}

func (f *Fleet) writeStates(ctx context.Context) error {
	for {
		entries := f.queue.DrainStates(writeBatch)
		if len(entries) == 0 {
			return nil
		}
		batch := make([]stateWrite, 0, len(entries))
		for _, e := range entries {
			if w, ok := e.drainState(); ok {
				batch = append(batch, w)
			}
		}
		if err := f.saveStates(ctx, batch); err != nil {
			f.metrics.writeErrors.WithLabelValues("states").Inc()
			return err
		}
	}
}

// drainState returns the state and its pending acks. False: the agent is removed.
func (e *entry) drainState() (stateWrite, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.phase == phaseRemoved {
		return stateWrite{}, false
	}
	state := &e.activeLocked().state
	w := stateWrite{entry: e, state: state.newest.Clone(), pendingAcks: state.pendingAcks}
	w.state.Incarnation = e.reg.Load().Incarnation
	state.queued, state.pendingAcks = false, nil
	return w, true
}

// saveStates writes the batch. Each part is resolved or queued again. A batch that
// the database rejects is halved until the rejected state is alone.
func (f *Fleet) saveStates(ctx context.Context, batch []stateWrite) error {
	if len(batch) == 0 {
		return nil
	}
	states := make([]agent.State, len(batch))
	for i, w := range batch {
		states[i] = w.state
	}
	saveCtx, cancel := context.WithTimeout(ctx, f.opts.Load().WriteTimeout)
	newer, err := f.store.SaveStates(saveCtx, states)
	cancel()
	switch {
	case err == nil:
		f.metrics.statesWritten.Add(float64(len(batch)))
		f.peers.notify(notification.States)
		against := make(map[agent.ID]agent.StoredEpoch, len(newer))
		for _, n := range newer {
			against[n.Agent] = n
		}
		for _, w := range batch {
			stored, lost := against[w.entry.id]
			if lost && stored.First {
				f.supersedeByFirst(w, stored.Epoch)
				continue
			}
			if lost {
				w.pendingAcks.Supersede(stored.Epoch)
			}
			w.pendingAcks.Resolve(nil)
		}
		return nil
	case !errors.Is(err, agent.ErrRejected):
		for _, w := range batch {
			f.requeueState(w)
		}
		return fmt.Errorf("save states: %w", err)
	case len(batch) == 1:
		f.metrics.statesRejected.Inc()
		f.refusedStates.Log(ctx, f.log, slog.LevelWarn, "states", 1, "the database refuses the state of an agent", "agent", batch[0].entry.id, "error", err)
		batch[0].pendingAcks.Resolve(&agent.Refusal{
			Kind:    agent.RefusedStore,
			Reason:  "store",
			Message: "the database refused the agent's state",
			Count:   1,
		})
		return nil
	}
	half := len(batch) / 2
	err = f.saveStates(ctx, batch[:half])
	return errors.Join(err, f.saveStates(ctx, batch[half:]))
}

// requeueState queues the state again, together with later changes of it.
func (f *Fleet) requeueState(w stateWrite) {
	e := w.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.phase == phaseRemoved {
		return
	}
	state := &e.activeLocked().state
	w.pendingAcks.Append(state.pendingAcks)
	state.pendingAcks = w.pendingAcks
	f.supersedePendingLocked(e, e.history().storedEpoch) // stored parts may have replaced some meanwhile
	if !state.queued {
		state.queued = true
		f.queue.AddState(e)
	}
}
