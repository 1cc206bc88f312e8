package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// writeBatch bounds the states of one write: 1,000 small rows are about 30 ms
// of SQLite, and an agent's state waits no longer than that behind another's.
const writeBatch = 1000

// scanInterval is how late a session's age may be noticed.
const scanInterval = time.Second

// The backoff of writes and loads that fail.
const (
	minBackoff = 500 * time.Millisecond
	maxBackoff = 15 * time.Second
)

// writes is what waits to be written: at most one state and one session an agent,
// and the finished builds, of which there is one more only for each that is
// registered.
type writes struct {
	// wake has an element when there is something to write.
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	states   map[*entry]struct{}
	sessions map[*entry]struct{}
	// saving are the sessions that are being written.
	saving []*entry
	builds map[agent.ID]finishedBuild
	err    error // of the last write; nil: it went well
}

func newWrites() writes {
	return writes{
		wake:     make(chan struct{}, 1),
		states:   make(map[*entry]struct{}),
		sessions: make(map[*entry]struct{}),
		builds:   make(map[agent.ID]finishedBuild),
	}
}

func (w *writes) addState(e *entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.states[e] = struct{}{}
	w.wakeUp()
}

// addBuild adds a finished build. How it was first stays.
func (w *writes) addBuild(id agent.ID, b finishedBuild) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, waits := w.builds[id]; !waits {
		w.builds[id] = b
	}
	w.wakeUp()
}

// putBackBuilds has builds written again. They were first.
func (w *writes) putBackBuilds(builds map[agent.ID]finishedBuild) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.Copy(w.builds, builds)
}

func (w *writes) takeBuilds() map[agent.ID]finishedBuild {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.builds) == 0 {
		return nil
	}
	taken := w.builds
	w.builds = make(map[agent.ID]finishedBuild)
	return taken
}

func (w *writes) wakeUp() { signal(w.wake) }

// remove forgets what waits to be written of a removed agent.
func (w *writes) remove(e *entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.states, e)
	delete(w.sessions, e)
}

// takeStates removes and returns at most limit entries.
func (w *writes) takeStates(limit int) []*entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := make([]*entry, 0, min(limit, len(w.states)))
	for e := range w.states {
		if len(taken) == limit {
			break
		}
		taken = append(taken, e)
		delete(w.states, e)
	}
	return taken
}

func (w *writes) pendingStates() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.states)
}

func (w *writes) done(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

func (w *writes) failing() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Run loads the registrations if that is still to be done, writes states and
// sessions behind, ends aged sessions, and follows the other replicas. It blocks
// until ctx is cancelled, then writes what is left within Options.WriteTimeout,
// and returns nil.
func (f *Fleet) Run(ctx context.Context) error {
	if f.peers != nil {
		// Heard before anything is read, so that nothing falls between.
		cancel, err := f.peers.news.Subscribe(newsChannel, f.hear)
		if err != nil {
			return fmt.Errorf("subscribe to news of the fleet: %w", err)
		}
		defer cancel()
	}
	if !f.loadUntilDone(ctx) {
		return nil
	}
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { f.scanUntilDone(ctx) })
	if f.peers != nil {
		background.Go(func() { f.followUntilDone(ctx) })
		background.Go(func() { f.tellUntilDone(ctx) })
	}

	timer := time.NewTimer(0) // what was said before Run
	defer timer.Stop()
	backoff := minBackoff
	armed := true
	for {
		select {
		case <-ctx.Done():
			f.lastWrite(ctx)
			background.Wait()
			if f.peers != nil {
				f.peers.tell(ctx) // of what was written last
			}
			return nil
		case <-f.writes.wake:
			if !armed {
				timer.Reset(f.opts.WriteInterval)
				armed = true
			}
		case <-timer.C:
			armed = false
			err := f.write(ctx)
			if err == nil {
				backoff = minBackoff
				continue
			}
			if ctx.Err() != nil {
				continue
			}
			f.log.Warn("states of agents are not written and will be tried again", "error", err, "after", backoff)
			timer.Reset(backoff)
			armed = true
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// loadUntilDone returns false if ctx was cancelled first.
func (f *Fleet) loadUntilDone(ctx context.Context) bool {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := f.Load(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			f.log.Error("the registrations are not loaded and will be tried again", "error", err, "after", backoff)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(backoff):
		}
	}
}

func (f *Fleet) scanUntilDone(ctx context.Context) {
	ticker := time.NewTicker(scanInterval)
	defer ticker.Stop()
	templates := time.NewTicker(templateScan)
	defer templates.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			f.scan(now)
		case now := <-templates.C:
			f.forgetTemplates(now)
		}
	}
}

func (f *Fleet) lastWrite(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.opts.WriteTimeout)
	defer cancel()
	if err := f.write(ctx); err != nil {
		f.log.Error("the last states of agents are not written", "error", err, "agents", f.writes.pendingStates())
	}
}

// write writes all that waits. What fails waits on.
func (f *Fleet) write(ctx context.Context) error {
	err := f.writeStates(ctx)
	if err == nil {
		err = f.writeSessions(ctx)
	}
	if err == nil {
		err = f.writeBuilds(ctx)
	}
	f.metrics.statesPending.Set(float64(f.writes.pendingStates()))
	f.writes.done(err)
	return err
}

// stateWrite is the state of one agent on its way to the database.
type stateWrite struct {
	entry *entry
	state agent.State
	holds []hold
}

func (f *Fleet) writeStates(ctx context.Context) error {
	for {
		entries := f.writes.takeStates(writeBatch)
		if len(entries) == 0 {
			return nil
		}
		batch := make([]stateWrite, 0, len(entries))
		for _, e := range entries {
			if w, ok := e.beginWrite(); ok {
				batch = append(batch, w)
			}
		}
		if err := f.saveStates(ctx, batch); err != nil {
			f.metrics.writeErrors.WithLabelValues("states").Inc()
			return err
		}
	}
}

// beginWrite takes the state and the holds on it; false: the agent is gone.
func (e *entry) beginWrite() (stateWrite, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return stateWrite{}, false
	}
	w := stateWrite{entry: e, state: cloneState(e.state), holds: e.holds}
	w.state.Incarnation = e.reg.Load().Incarnation
	e.dirty, e.holds = false, nil
	return w, true
}

// saveStates writes the batch, and settles or puts back every part of it. A
// batch that the database rejects is halved until the bad state is alone.
func (f *Fleet) saveStates(ctx context.Context, batch []stateWrite) error {
	if len(batch) == 0 {
		return nil
	}
	states := make([]agent.State, len(batch))
	for i, w := range batch {
		states[i] = w.state
	}
	saveCtx, cancel := context.WithTimeout(ctx, f.opts.WriteTimeout)
	newer, err := f.store.SaveStates(saveCtx, states)
	cancel()
	switch {
	case err == nil:
		f.metrics.statesWritten.Add(float64(len(batch)))
		f.peers.tellStates()
		against := make(map[agent.ID]agent.StoredEpoch, len(newer))
		for _, n := range newer {
			against[n.Agent] = n
		}
		for _, w := range batch {
			stored, lost := against[w.entry.id]
			switch {
			case !lost:
				w.entry.noteRecorded(w.state.MaxEpoch())
			case stored.First:
				f.supersedeFirst(w, stored.Epoch)
				continue
			default:
				w.supersede(stored.Epoch)
			}
			w.settle(nil)
		}
		return nil
	case !errors.Is(err, agent.ErrRejected):
		for _, w := range batch {
			f.putBack(w)
		}
		return fmt.Errorf("save states: %w", err)
	case len(batch) == 1:
		f.metrics.statesRejected.Inc()
		f.log.Warn("the database refuses the state of an agent", "agent", batch[0].entry.id, "error", err)
		batch[0].settle(&agent.Refusal{
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

// supersede tells those whose session has an epoch below the stored one; 0: all, as
// they are of another incarnation than the agent has. Their holds stay: no ack
// passes them.
func (w *stateWrite) supersede(stored int64) {
	stay := w.holds[:0]
	for _, h := range w.holds {
		if stored == 0 || stored > h.epoch {
			h.tracker.Supersede(stored)
		} else {
			stay = append(stay, h)
		}
	}
	w.holds = stay
}

func (w stateWrite) settle(refusal *agent.Refusal) {
	for _, h := range w.holds {
		h.tracker.Settle([]agent.Settled{{Sequence: h.sequence, Refusal: refusal}})
	}
}

// putBack has the state written again, with what was said meanwhile.
func (f *Fleet) putBack(w stateWrite) {
	e := w.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return
	}
	newer := e.holds
	e.holds = w.holds
	for _, h := range newer {
		riding := false
		for _, older := range w.holds {
			riding = riding || older.tracker == h.tracker
		}
		if riding {
			h.tracker.Settle([]agent.Settled{{Sequence: h.sequence}})
			continue
		}
		e.holds = append(e.holds, h)
	}
	f.supersedeHoldsLocked(e, e.stored) // stored parts may have been taken in meanwhile
	if !e.dirty {
		e.dirty = true
		f.writes.addState(e)
	}
}
