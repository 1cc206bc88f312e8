package reports

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
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
	position agent.Position
	since    time.Time
	forced   bool
	told     map[agent.ID]int64
	twice    map[agent.ID]int64 // bits that may be told again
	problem  error
}

// agentModel is an agent. Each of its reports has a bit of its own as bytes.
type agentModel struct {
	id       agent.ID
	order    agent.Order
	reported int
	// mayBeLost are the bits that a killed replica or an older database may not have;
	// early those from before the subscription counts.
	mayBeLost, early int64
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
	p := &process{reports: r, store: store, cancel: cancel, done: make(chan struct{}), ctx: ctx}
	go func() {
		defer close(p.done)
		_ = r.Run(ctx)
	}()
	w.mu.Lock()
	w.processes[i] = p
	w.mu.Unlock()
	w.logf("replica %d starts", i)
}

// stop tells a replica to stop.
func (w *world) stop(i int) {
	w.logf("replica %d stops", i)
	p := w.processes[i]
	synctest.Wait()
	before := w.agents
	w.unwritten(p)
	p.cancel()
	<-p.done
	// What it cannot write within its time is lost, and counted.
	if testutil.ToFloat64(p.reports.metrics.dropped.WithLabelValues(droppedShutdown)) == 0 {
		w.agents = before
	}
}

func (w *world) kill(i int) {
	w.logf("replica %d is killed", i)
	p := w.processes[i]
	synctest.Wait()
	w.unwritten(p)
	p.store.Kill()
	p.cancel()
	<-p.done
}

// unwritten notes what a replica holds.
func (w *world) unwritten(p *process) {
	p.reports.mu.Lock()
	defer p.reports.mu.Unlock()
	note := func(s *agent.ReportSum) {
		for i := range w.agents {
			if w.agents[i].id == s.Agent {
				w.agents[i].mayBeLost |= s.RxBytes
			}
		}
	}
	for _, g := range p.reports.groups {
		for _, s := range g.order {
			note(s)
		}
	}
	if f := p.reports.frozen; f != nil {
		for i := range f.write.Sums {
			note(&f.write.Sums[i])
		}
	}
}

func (w *world) report() {
	a := &w.agents[w.random.IntN(len(w.agents))]
	if a.reported == maxBits {
		return
	}
	if w.random.IntN(5) == 0 {
		a.order = agent.Order{Epoch: a.order.Epoch + 1} // it connects elsewhere
	}
	a.order.Sequence++
	i := w.random.IntN(len(w.processes))
	p := w.processes[i]
	bit := int64(1) << a.reported
	a.reported++
	w.logf("agent %d reports bit %d to %d", a.id[15], a.reported-1, i)
	if !w.counts() || !p.reports.Wanted() && w.unconfirmed() {
		a.early |= bit
	}
	if p.reports.Wanted() {
		p.reports.Add(&agent.ReportSum{Agent: a.id, Order: a.order, Reports: 1, RxBytes: bit, ReceivedAt: time.Now(), Data: []byte(fmt.Sprint(a.order))})
	}
}

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

// process stores what a message tells with its position, in the place of the previous
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
		case w.told[s.Agent]&s.RxBytes&^w.twice[s.Agent] != 0:
			w.problem = errors.Join(w.problem, fmt.Errorf("agent %d: %b was told, now %b", s.Agent[15], w.told[s.Agent], s.RxBytes))
		case string(s.Data) == "":
			w.problem = errors.Join(w.problem, fmt.Errorf("agent %d: no data", s.Agent[15]))
		}
		w.told[s.Agent] |= s.RxBytes
	}
	return true
}

// restore puts the database back to what it was a while ago.
func (w *world) restore(restore func(), had []agent.ReportSum) {
	w.logf("the database is restored")
	synctest.Wait()
	// A write whose answer is late may have been told already, and is made again.
	for _, p := range w.processes {
		p.reports.mu.Lock()
		if f := p.reports.frozen; f != nil {
			had = append(had, f.write.Sums...)
		}
		p.reports.mu.Unlock()
	}
	restore()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.agents {
		// What came since the backup is lost, unless it was told or is not written yet.
		w.agents[i].mayBeLost |= 1<<w.agents[i].reported - 1
	}
	for _, s := range had {
		w.twice[s.Agent] |= s.RxBytes
	}
}

func runModel(t *testing.T, seed uint64) (trace []string, err error) {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), chance: rand.New(rand.NewPCG(seed, 2)),
		database: memstore.New(), told: make(map[agent.ID]int64), twice: make(map[agent.ID]int64),
	}
	for i := range w.agents {
		w.agents[i] = agentModel{id: agent.ID{15: byte(i + 1)}, order: agent.Order{Epoch: 1}}
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
		switch n := w.random.IntN(40); {
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
		case n < 33:
			w.setFaulty(w.random.IntN(2) == 0)
		default:
			time.Sleep(time.Duration(w.random.IntN(3000)) * time.Millisecond)
		}
	}
	w.setFaulty(false)
	time.Sleep(2 * time.Minute)
	w.database.Wait()
	time.Sleep(2 * time.Minute)
	cancel()
	watching.Wait()
	for i := range w.processes {
		w.stop(i)
	}
	w.database.Wait()
	return w.trace, w.check()
}

// unconfirmed reports whether the subscription may have begun without a replica, which was
// cut off for too long.
func (w *world) unconfirmed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.forced
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
		told := w.told[a.id]
		if lost := sent &^ told &^ a.mayBeLost &^ a.early; lost != 0 {
			problem = errors.Join(problem, fmt.Errorf("agent %d: %b is lost of %b", a.id[15], lost, sent))
		}
		if more := told &^ sent; more != 0 {
			problem = errors.Join(problem, fmt.Errorf("agent %d: %b was never reported", a.id[15], more))
		}
	}
	return problem
}

// Whoever is killed, stops or crashes, whatever the database does: each report counts
// exactly once, but for what a killed replica had not written and an older database
// does not have.
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
