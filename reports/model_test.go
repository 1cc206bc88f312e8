package reports

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"slices"
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

// modelTracker is how far the reports of an instance have come at a process.
type modelTracker struct {
	mu       sync.Mutex
	received int64
	awaited  map[int64]struct{}
}

// ReportWritten implements agent.ReportTracker.
func (t *modelTracker) ReportWritten(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.awaited, sequence)
}

// acked returns up to where the instance need not keep its reports.
func (t *modelTracker) acked() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	acked := t.received
	for sequence := range t.awaited {
		acked = min(acked, sequence-1)
	}
	return acked
}

// tracker returns that of an instance.
func (p *process) tracker(of agent.Instance) *modelTracker {
	if p.trackers[of] == nil {
		p.trackers[of] = &modelTracker{awaited: make(map[int64]struct{})}
	}
	return p.trackers[of]
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
	instance agent.Instance
	order    agent.Order
	reported int
	// on is the process that it has a stream of; nil: none.
	on *process
	// inFlight are the reports that it keeps, at most maxInFlight.
	inFlight []sentReport
	// mayBeLost are the bits that an older database or a process of the agent that ended
	// took away; early those from before the subscription counts.
	mayBeLost, early int64
}

type sentReport struct{ sequence, bit int64 }

// maxInFlight is that of the client.
const maxInFlight = 16

func (a *agentModel) bitsInFlight() (bits int64) {
	for _, r := range a.inFlight {
		bits |= r.bit
	}
	return bits
}

// handleAck drops what need not be kept.
func (a *agentModel) handleAck(acked int64) {
	a.inFlight = slices.DeleteFunc(a.inFlight, func(r sentReport) bool { return r.sequence <= acked })
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

// stop tells a replica to stop. What it cannot write within its time is sent again.
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

// unwrittenBits returns what a replica has of an agent.
func (p *process) unwrittenBits(id agent.ID) (bits int64) {
	p.reports.mu.Lock()
	defer p.reports.mu.Unlock()
	for _, g := range p.reports.groups {
		if u := g.agents[id]; u != nil {
			for i := range u.reports {
				bits |= u.reports[i].rxBytes
			}
		}
	}
	if f := p.reports.frozen; f != nil {
		for i := range f.write.Sums {
			if f.write.Sums[i].Agent == id {
				bits |= f.write.Sums[i].RxBytes
			}
		}
	}
	return bits
}

// connect has an agent open a stream, and send again what it keeps. Some time a replica
// has forgotten how far the instance has come.
func (w *world) connect(a *agentModel, p *process, forgotten bool) {
	if forgotten {
		delete(p.trackers, a.instance)
	}
	a.on = p
	a.order.Epoch++
	acked := p.tracker(a.instance).acked()
	a.handleAck(acked)
	w.logf("agent %d connects, %d is acked, %d in flight", a.id[15], acked, len(a.inFlight))
	for _, r := range a.inFlight {
		w.send(a, r)
	}
}

// send has the process take in a report, unless it has it.
func (w *world) send(a *agentModel, r sentReport) {
	p, t := a.on, a.on.tracker(a.instance)
	wanted := p.reports.Wanted()
	if !w.counts() || !wanted && w.unconfirmed() {
		a.early |= r.bit
	}
	t.mu.Lock()
	known := r.sequence <= t.received
	t.received = max(t.received, r.sequence)
	if wanted && !known {
		t.awaited[r.sequence] = struct{}{}
	}
	t.mu.Unlock()
	if known || !wanted {
		return
	}
	order := agent.Order{Epoch: a.order.Epoch, Sequence: r.sequence}
	p.reports.Add(&agent.ReportSum{
		Agent: a.id, Instance: a.instance, Tracker: t, Order: order,
		Reports: 1, RxBytes: r.bit, ReceivedAt: time.Now(), Data: []byte(fmt.Sprint(order)),
	})
}

// report has an agent report, over the stream that it has or another one.
func (w *world) report() {
	a := &w.agents[w.random.IntN(len(w.agents))]
	if a.reported == maxBits || len(a.inFlight) == maxInFlight {
		return
	}
	if a.on == nil || w.random.IntN(5) == 0 {
		w.connect(a, w.processes[w.random.IntN(len(w.processes))], w.random.IntN(8) == 0)
	}
	a.order.Sequence++
	r := sentReport{a.order.Sequence, int64(1) << a.reported}
	w.logf("agent %d reports bit %d as %d", a.id[15], a.reported, r.sequence)
	a.reported++
	a.inFlight = append(a.inFlight, r)
	w.send(a, r)
}

// ack has the acks come that are due of some agents.
func (w *world) ack() {
	for i := range w.agents {
		if a := &w.agents[i]; a.on != nil && w.random.IntN(2) == 0 {
			a.handleAck(a.on.tracker(a.instance).acked())
		}
	}
}

// restart ends an agent's process, with what it keeps. The next one begins anew.
func (w *world) restart() {
	a := &w.agents[w.random.IntN(len(w.agents))]
	w.logf("agent %d starts again", a.id[15])
	a.mayBeLost |= a.bitsInFlight()
	a.instance[0]++
	a.on, a.inFlight, a.order.Sequence = nil, nil, 0
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
	// What a replica or an agent has may have been told already, and is written again.
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
		// What came since the backup is lost, unless it was told or is not written yet.
		w.agents[i].mayBeLost |= 1<<w.agents[i].reported - 1
		w.twice[w.agents[i].id] |= again[w.agents[i].id]
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
