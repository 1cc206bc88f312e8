package reports

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/memstore"
)

var (
	seeds    = flag.Int("seeds", 150, "runs of the model")
	oneSeed  = flag.Uint64("seed", 0, "run this seed of the model only, and print its steps with -v")
	maxBits  = 60
	noFaults = memstore.Fault{}
)

// process is one process of the service.
type process struct {
	reports *Reports
	store   *memstore.Store
	cancel  context.CancelFunc
	done    chan struct{}
	ctx     context.Context
	// trackers of the instances that reported to it.
	trackers map[agent.Instance]*modelTracker
}

// world is three replicas on one database, agents that report to them, and instances
// of coderd that share one database of their own.
type world struct {
	t         *testing.T
	random    *rand.Rand
	trace     []string
	database  *memstore.Database
	processes [3]*process
	agents    [4]agentModel

	traceMu sync.Mutex // guards trace

	mu sync.Mutex
	// Guarded by mu.

	faulty bool
	chance *rand.Rand
	// What coderd has stored, in one transaction of its database each time.
	position  agent.Position
	since     time.Time
	forced    bool
	delivered map[agent.ID]int64
	twice     map[agent.ID]int64 // bits that may be delivered again
	problem   error
}

func (w *world) logf(format string, args ...any) {
	w.traceMu.Lock()
	defer w.traceMu.Unlock()
	w.trace = append(w.trace, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// fault draws what happens to a transaction.
func (w *world) fault(string, bool) memstore.Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.faulty {
		return noFaults
	}
	f := memstore.Fault{Before: time.Duration(w.chance.IntN(20)) * time.Millisecond, Work: time.Duration(w.chance.IntN(20)) * time.Millisecond}
	switch w.chance.IntN(12) {
	case 0:
		f.Err = memstore.ErrReset
	case 1:
		f.Err = memstore.ErrRefused
	case 2, 3:
		f.Lost, f.Late = true, time.Duration(w.chance.IntN(3000))*time.Millisecond
	case 4:
		f.After = time.Duration(w.chance.IntN(8000)) * time.Millisecond
	case 5:
		f.Hang = true
	}
	return f
}

func (w *world) start(i int) {
	store := w.database.Open(memstore.Options{Fault: w.fault})
	r, err := New(forcing{store, w}, Options{Shared: true, MaxSubscriptions: 4}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(w.t, err)
	for r.Load(w.t.Context()) != nil {
		time.Sleep(100 * time.Millisecond)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{reports: r, store: store, cancel: cancel, done: make(chan struct{}), ctx: ctx, trackers: make(map[agent.Instance]*modelTracker)}
	go func() {
		defer close(p.done)
		_ = r.Run(ctx)
	}()
	w.mu.Lock()
	w.processes[i] = p
	w.mu.Unlock()
	w.logf("replica %d starts", i)
}

// stop stops a replica. What it cannot write within its time is sent again.
func (w *world) stop(i int) {
	w.logf("replica %d stops", i)
	p := w.processes[i]
	synctest.Wait()
	w.cut(p)
	p.cancel()
	<-p.done
}

func (w *world) kill(i int) {
	w.logf("replica %d is killed", i)
	p := w.processes[i]
	synctest.Wait()
	w.cut(p)
	p.store.Kill()
	p.cancel()
	<-p.done
}

// cut cuts the streams of a process.
func (w *world) cut(p *process) {
	for i := range w.agents {
		if w.agents[i].on == p {
			w.agents[i].on = nil
		}
	}
}

func runModel(t *testing.T, seed uint64) (trace []string, err error) {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), chance: rand.New(rand.NewPCG(seed, 2)),
		database: memstore.New(), delivered: make(map[agent.ID]int64), twice: make(map[agent.ID]int64),
	}
	for i := range w.agents {
		w.agents[i] = agentModel{id: agent.ID{15: byte(i + 1)}, instance: agent.Instance{15: byte(i + 1)}, order: agent.Order{Epoch: 1}}
	}
	for i := range w.processes {
		w.start(i)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	instances := 1 + w.random.IntN(2)
	for i := range instances {
		random, crash := rand.New(rand.NewPCG(seed, uint64(10+i))), rand.New(rand.NewPCG(seed, uint64(20+i)))
		watching.Go(func() {
			w.watch(ctx, fmt.Sprintf("coderd-%d", i), random, func() bool { return crash.IntN(8) == 0 })
		})
	}
	restores := w.random.IntN(3) == 0
	var restore func()
	var had []agent.ReportSum
	w.setFaulty(true)
	for range 150 {
		w.ack()
		switch n := w.random.IntN(42); {
		case n < 25:
			w.report()
		case n == 25, n == 26:
			i := w.random.IntN(3)
			if n == 25 {
				w.kill(i)
			} else {
				w.stop(i)
			}
			w.start(i)
		case n == 27:
			w.logf("failover")
			w.database.FailOver()
		case n == 28 && restores && restore == nil && w.counts():
			had, restore = w.database.ReportSums(), w.database.Backup()
			w.logf("backup")
		case n == 29 && restore != nil:
			w.restore(restore, had)
			restore = nil
		case n >= 39:
			w.restart()
		case n < 33:
			w.setFaulty(w.random.IntN(2) == 0)
		default:
			time.Sleep(time.Duration(w.random.IntN(3000)) * time.Millisecond)
		}
	}
	w.setFaulty(false)
	for i := range w.agents {
		w.connect(&w.agents[i], w.processes[w.random.IntN(len(w.processes))], false)
	}
	time.Sleep(2 * time.Minute)
	w.database.Wait()
	time.Sleep(2 * time.Minute)
	for i := range w.agents {
		a := &w.agents[i]
		if a.handleAck(a.on.tracker(a.instance).acked()); len(a.inFlight) > 0 {
			err = errors.Join(err, fmt.Errorf("agent %d: %d reports are not acked", a.id[15], len(a.inFlight)))
		}
	}
	cancel()
	watching.Wait()
	for i := range w.processes {
		w.stop(i)
	}
	w.database.Wait()
	return w.trace, errors.Join(err, w.check())
}

// unconfirmed reports whether the subscription may have begun without a replica, which was
// cut off for too long.
func (w *world) unconfirmed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.forced
}

// counts reports whether the subscription counts.
func (w *world) counts() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.since.IsZero()
}

func (w *world) setFaulty(faulty bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faulty = faulty
	w.logf("faulty: %v", faulty)
}

// check compares what coderd has with what agents reported.
func (w *world) check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	problem := w.problem
	for i := range w.agents {
		a := &w.agents[i]
		sent := int64(1)<<a.reported - 1
		delivered := w.delivered[a.id]
		if lost := sent &^ delivered &^ a.mayBeLost &^ a.early; lost != 0 {
			problem = errors.Join(problem, fmt.Errorf("agent %d: %b is lost of %b", a.id[15], lost, sent))
		}
		if more := delivered &^ sent; more != 0 {
			problem = errors.Join(problem, fmt.Errorf("agent %d: %b was never reported", a.id[15], more))
		}
	}
	return problem
}

// Each report counts exactly once, wherever its agent sends it again, whoever is
// killed, stops or crashes. Two kinds are excepted: what an older database does not
// have, and what an agent's process kept that ended.
func TestModel(t *testing.T) {
	first, n := uint64(1), *seeds
	if *oneSeed != 0 {
		first, n = *oneSeed, 1
	}
	for seed := first; seed < first+uint64(n); seed++ {
		var trace []string
		var err error
		bubble.Test(t, func(t *testing.T) { trace, err = runModel(t, seed) })
		if err != nil || *oneSeed != 0 {
			// The order of goroutines that are ready at one moment is not the seed's.
			t.Log(strings.Join(trace, "\n"))
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
