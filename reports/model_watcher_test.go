package reports

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing/synctest"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/memstore"
)

// watch is an instance of coderd, until ctx ends: it has streams of one replica after
// another, and crashes now and then.
func (w *world) watch(ctx context.Context, name string, random *rand.Rand, crashes func() bool) {
	standBy := false
	for ctx.Err() == nil {
		w.mu.Lock()
		watch := agent.ReportWatch{Name: "insights", Position: w.position, StandBy: standBy}
		i := random.IntN(len(w.processes))
		p := w.processes[i]
		w.mu.Unlock()
		streamCtx, cancel := context.WithCancel(ctx)
		stopped := context.AfterFunc(p.ctx, cancel)
		acks := make(chan int64)
		pending := make(chan int64, 1)
		go func() {
			defer close(acks)
			for {
				select {
				case n := <-pending:
					select {
					case acks <- n:
					case <-streamCtx.Done():
						return
					}
				case <-streamCtx.Done():
					return
				}
			}
		}()
		previous := watch.Position
		err := p.reports.Serve(streamCtx, watch, acks, func(m agent.ReportMessage) error {
			w.mu.Lock()
			crash := w.faulty && crashes() // before it is stored
			w.mu.Unlock()
			if crash && len(m.Sums) > 0 && crashes() {
				// It takes its time, while the lease is renewed.
				time.AfterFunc(20*time.Second, cancel)
				return nil
			}
			if crash {
				return errors.New("coderd crashed")
			}
			if !w.process(name, &previous, m) {
				return errors.New("another position is stored than the stream knows")
			}
			w.mu.Lock()
			crash = w.faulty && crashes() // before it is acked
			w.mu.Unlock()
			if crash {
				return errors.New("coderd crashed")
			}
			if len(m.Sums) > 0 {
				pending <- m.Position.Number
			}
			return nil
		})
		stopped()
		cancel()
		standBy = errors.Is(err, agent.ErrSuperseded) || errors.Is(err, agent.ErrNameFree)
		w.logf("%s: stream of %d ended: %v", name, i, err)
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// process stores the sums of a message with its position, in the place of the previous
// one. If that is not stored, as another instance had the name meanwhile, the stream is
// to begin anew.
func (w *world) process(name string, previous *agent.Position, m agent.ReportMessage) (current bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = m.Since
	if m.Position.Incarnation == previous.Incarnation && m.Position.Number <= previous.Number {
		return true // as the client does
	}
	if w.position != *previous {
		return false
	}
	w.position, *previous = m.Position, m.Position
	for i := range m.Sums {
		s := &m.Sums[i]
		w.logf("%s: %v of agent %d: %b", name, m.Position.Number, s.Agent[15], s.RxBytes)
		switch {
		case int64(bits.OnesCount64(uint64(s.RxBytes))) != s.Reports:
			w.problem = errors.Join(w.problem, fmt.Errorf("agent %d: %d reports have %b", s.Agent[15], s.Reports, s.RxBytes))
		case w.delivered[s.Agent]&s.RxBytes&^w.twice[s.Agent] != 0:
			w.problem = errors.Join(w.problem, fmt.Errorf("agent %d: %b was delivered, now %b", s.Agent[15], w.delivered[s.Agent], s.RxBytes))
		case string(s.Data) == "":
			w.problem = errors.Join(w.problem, fmt.Errorf("agent %d: no data", s.Agent[15]))
		}
		w.delivered[s.Agent] |= s.RxBytes
	}
	return true
}

// restore puts the database back to what it was a while ago.
func (w *world) restore(restore func(), had []agent.ReportSum) {
	w.logf("the database is restored")
	synctest.Wait()
	// What a replica or an agent has may have been delivered already, and is written again.
	again := make(map[agent.ID]int64)
	for i := range w.agents {
		a := &w.agents[i]
		again[a.id] = a.bitsInFlight()
		for _, p := range w.processes {
			again[a.id] |= p.unwrittenBits(a.id)
		}
	}
	restore()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.agents {
		// What came since the backup is lost, unless it was delivered or is not written yet.
		w.agents[i].mayBeLost |= 1<<w.agents[i].reported - 1
		w.twice[w.agents[i].id] |= again[w.agents[i].id]
	}
	for _, s := range had {
		w.twice[s.Agent] |= s.RxBytes
	}
}

// forcing notes that a subscription is to begin without a replica: the answer, with which
// that is counted, may be lost.
type forcing struct {
	*memstore.Store
	world *world
}

func (f forcing) StartSubscription(ctx context.Context, id int64, self agent.ID, within time.Duration, force bool) (time.Time, error) {
	if force {
		f.world.mu.Lock()
		f.world.forced = true
		f.world.mu.Unlock()
	}
	return f.Store.StartSubscription(ctx, id, self, within, force)
}
