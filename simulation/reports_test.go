package simulation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/memstore"
	"github.com/coder/agentstatsd/reports"
)

// bitsOf is how many reports have a bit of their own in one count of a sum.
const bitsOf = 60

// reported is a set of an agent's reports: each has a bit of its own in one of the
// counts, so a sum says which reports are in it.
type reported [4]int64

func setOf(s *agent.ReportSum) reported {
	return reported{s.RxBytes, s.TxBytes, s.RxPackets, s.TxPackets}
}

func (r reported) union(other reported) reported {
	for i := range r {
		r[i] |= other[i]
	}
	return r
}

func (r reported) without(other reported) reported {
	for i := range r {
		r[i] &^= other[i]
	}
	return r
}

func (r reported) and(other reported) reported {
	for i := range r {
		r[i] &= other[i]
	}
	return r
}

func (r reported) count() (n int) {
	for i := range r {
		n += bits.OnesCount64(uint64(r[i]))
	}
	return n
}

// String returns the numbers of the reports.
func (r reported) String() string {
	var numbers []int
	for i := range r {
		for n := range bitsOf {
			if r[i]&(1<<n) != 0 {
				numbers = append(numbers, i*bitsOf+n)
			}
		}
	}
	return fmt.Sprint(numbers)
}

// watched is what agents reported to a process for those who watch.
type watched struct {
	*reports.Reports
	store *journal
	// loaded is closed when the process knows of all subscriptions.
	loaded chan struct{}
	// killed is true if the process did not stop in its order.
	killed bool
	// added has what agents reported to this process.
	added map[agent.ID]reported
}

// journal is a store that notes which sums are written for certain.
type journal struct {
	*memstore.Store

	mu      sync.Mutex
	written map[agent.ID]reported
}

func (j *journal) AddReports(ctx context.Context, w agent.ReportWrite) (agent.ReportWritten, error) {
	written, err := j.Store.AddReports(ctx, w)
	if err == nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		for i := range w.Sums {
			j.written[w.Sums[i].Agent] = j.written[w.Sums[i].Agent].union(setOf(&w.Sums[i]))
		}
	}
	return written, err
}

// startReports has a process take part in subscriptions, once it knows of all.
func (p *process) startReports(ctx context.Context, reg prometheus.Registerer, log *slog.Logger) {
	p.watched = &watched{
		store:  &journal{Store: p.db, written: make(map[agent.ID]reported)},
		loaded: make(chan struct{}), added: make(map[agent.ID]reported),
	}
	var err error
	if p.watched.Reports, err = reports.New(p.watched.store, reports.Options{ID: p.id, Shared: true}, reg, log); err != nil {
		panic(err)
	}
	p.workers.Go(func() {
		for p.load(ctx) != nil {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
		close(p.watched.loaded)
		if err := p.watched.Run(ctx); err != nil {
			panic(err)
		}
	})
}

func (p *process) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return p.watched.Load(ctx)
}

// ready reports whether the process knows of all subscriptions: agents do not reach it
// before.
func (w *watched) ready() bool {
	select {
	case <-w.loaded:
		return true
	default:
		return false
	}
}

// unwritten returns the reports of an agent that may be lost with the process.
func (p *process) unwritten(id agent.ID) reported {
	if !p.watched.killed && p.dropped() == 0 {
		return reported{}
	}
	p.watched.store.mu.Lock()
	defer p.watched.store.mu.Unlock()
	return p.watched.added[id].without(p.watched.store.written[id])
}

// dropped returns how many reports the process dropped.
func (p *process) dropped() (n float64) {
	for _, r := range p.registries {
		families, err := r.Gather()
		if err != nil {
			panic(err)
		}
		for _, f := range families {
			if f.GetName() == "agentstatsd_reports_dropped_total" {
				for _, m := range f.GetMetric() {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// watcher is a coderd that watches what agents report, over one stream after another.
type watcher struct {
	draw *source

	mu sync.Mutex
	// Guarded by mu.

	targets  [slots]*process
	position agent.Position
	counts   bool // the subscription counts what agents report
	received map[agent.ID]reported
	problem  error
}

// setTarget puts a new process in the place of one.
func (wa *watcher) setTarget(slot int, p *process) {
	wa.mu.Lock()
	defer wa.mu.Unlock()
	wa.targets[slot] = p
}

// target returns a process that takes streams, if there is one.
func (wa *watcher) target() (p *process, position agent.Position) {
	wa.mu.Lock()
	defer wa.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(wa.targets[:]), func(p *process) bool { return p == nil || !p.watched.ready() || p.ctx.Err() != nil })
	if len(list) == 0 {
		return nil, wa.position
	}
	return list[int(wa.draw.float("target")*float64(len(list)))], wa.position
}

// run watches until ctx ends.
func (wa *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		if p, position := wa.target(); p != nil {
			wa.stream(ctx, p, position)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// errCrashed is how a stream ends whose coderd crashes.
var errCrashed = errors.New("coderd crashed")

// stream watches over p until that ends, or coderd crashes.
func (wa *watcher) stream(ctx context.Context, p *process, position agent.Position) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	acks := make(chan int64, 1) // a batch is sent when the one before is acked
	_ = p.watched.Serve(ctx, agent.ReportWatch{Name: "insights", Position: position}, acks, func(m agent.ReportMessage) error {
		if wa.draw.float("crash before it is stored") < 0.03 {
			return errCrashed
		}
		if !wa.process(&position, m) {
			return errCrashed
		}
		if wa.draw.float("crash before it is acked") < 0.03 {
			return errCrashed
		}
		if len(m.Sums) > 0 {
			acks <- m.Position.Number
		}
		return nil
	})
}

// process stores what a message has with its position, in the place of the previous
// one. It returns false if another stream has stored another one.
func (wa *watcher) process(previous *agent.Position, m agent.ReportMessage) (current bool) {
	wa.mu.Lock()
	defer wa.mu.Unlock()
	wa.counts = true
	if m.Position.Incarnation == previous.Incarnation && m.Position.Number <= previous.Number {
		return true // as the client does
	}
	if wa.position != *previous {
		return false
	}
	wa.position, *previous = m.Position, m.Position
	for i := range m.Sums {
		s, set := &m.Sums[i], setOf(&m.Sums[i])
		twice := wa.received[s.Agent].and(set)
		if twice.count() > 0 || int64(set.count()) != s.Reports {
			wa.problem = errors.Join(wa.problem, fmt.Errorf("agent %d: %d reports are received, %v, and %v again", s.Agent[15], s.Reports, set, twice))
		}
		wa.received[s.Agent] = wa.received[s.Agent].union(set)
	}
	return true
}

// reportToWatchers has a process take in a report for those who watch.
func (w *world) reportToWatchers(c *client, sum agent.ReportSum) {
	a, p := c.agent, c.on
	w.watcher.mu.Lock()
	counts := w.watcher.counts
	w.watcher.mu.Unlock()
	if !counts || a.reports == len(reported{})*bitsOf {
		return
	}
	bit := int64(1) << (a.reports % bitsOf)
	counted := []*int64{&sum.RxBytes, &sum.TxBytes, &sum.RxPackets, &sum.TxPackets}[a.reports/bitsOf]
	a.reports++
	*counted, sum.Reports, sum.Data = bit, 1, []byte{1}
	// What is sent again to another replica is another report here, so it is of another
	// instance: that a report counts once is the model's of package reports.
	for i := range sum.Instance {
		sum.Instance[i] ^= p.id[i]
	}
	a.reported = a.reported.union(setOf(&sum))
	p.watched.added[sum.Agent] = p.watched.added[sum.Agent].union(setOf(&sum))
	if p.watched.Wanted() {
		p.watched.Add(&sum)
	}
}

// checkWatched checks that no report is received twice. Once quiescent, each is received but for what
// processes had not written that were killed.
func (w *world) checkWatched(quiescent bool) error {
	wa := w.watcher
	if wa == nil {
		return nil
	}
	wa.mu.Lock()
	defer wa.mu.Unlock()
	errs := []error{wa.problem}
	if !quiescent {
		return wa.problem
	}
	if !wa.counts {
		errs = append(errs, errors.New("the subscription does not count"))
	}
	for _, a := range w.agents[1:] {
		received := wa.received[a.reg.ID]
		missing := a.reported.without(received)
		for _, p := range w.all {
			missing = missing.without(p.unwritten(a.reg.ID))
		}
		if missing.count() > 0 {
			errs = append(errs, fmt.Errorf("agent %d: its reports %v are not received", a.number, missing))
		}
		if made := received.without(a.reported); made.count() > 0 {
			errs = append(errs, fmt.Errorf("agent %d: reports %v are received, which it did not make", a.number, made))
		}
	}
	return errors.Join(errs...)
}
