package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/reports"
)

// bitsOf is how many reports have a bit of their own in one count of a sum.
const bitsOf = 60

// reported is a set of an agent's reports. Each has a bit of its own in one of the
// counts, so a sum shows which reports are in it.
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

// watched is the part of a process in subscriptions.
type watched struct {
	*reports.Reports
	// loaded is closed when the process knows of all subscriptions.
	loaded chan struct{}
}

// startReports has a process take part in subscriptions, once it knows of all.
func (p *process) startReports(ctx context.Context, reg prometheus.Registerer, log *slog.Logger) {
	p.watched = &watched{loaded: make(chan struct{})}
	var err error
	if p.watched.Reports, err = reports.New(p.db, reports.Options{ID: p.id, Shared: true}, reg, log); err != nil {
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

// maxInFlight is that of package client: so many reports with counts are kept until they
// are acked. Counts beyond them merge.
const maxInFlight = 16

// sentReport is a report with counts that its client keeps.
type sentReport struct {
	sequence int64
	bits     reported
}

// newReport makes the next report of a process. It has a bit of its own while somebody
// watches, and those that were not sent yet.
func (w *world) newReport(c *client) sentReport {
	c.sequence++
	r := sentReport{sequence: c.sequence}
	if w.watcher == nil {
		return r
	}
	a := c.agent
	w.watcher.mu.Lock()
	counts := w.watcher.counts
	w.watcher.mu.Unlock()
	if counts && a.reports < len(reported{})*bitsOf {
		c.unsent[a.reports/bitsOf] |= 1 << (a.reports % bitsOf)
		a.reports++
		a.reported = a.reported.union(c.unsent)
	}
	if len(c.inFlight) == maxInFlight || c.unsent.count() == 0 {
		return r
	}
	r.bits, c.unsent = c.unsent, reported{}
	c.inFlight = append(c.inFlight, r)
	return r
}

// sendReport has the process of c's session take in a report, as agentapi does.
func (w *world) sendReport(c *client, r sentReport, superseded bool) error {
	p := c.on
	return c.session.Receive(time.Now(), r.sequence, func(q fleet.Request) {
		if r.bits.count() > 0 && p.watched.Wanted() {
			p.watched.Add(&agent.ReportSum{
				Agent: q.Agent(), Workspace: q.Workspace().ID, Instance: q.Instance(), Order: q.Order(), ReceivedAt: q.Now(),
				Reports: int64(r.bits.count()), RxBytes: r.bits[0], TxBytes: r.bits[1], RxPackets: r.bits[2], TxPackets: r.bits[3],
				Data: []byte{1}, Tracker: q.AwaitReport(),
			})
		}
		p.counted[q.Agent()] = append(p.counted[q.Agent()], countedReport{q.Now(), q.Epoch(), q.Instance(), r.sequence})
		if superseded {
			p.series.AddBytes(q.Agent(), q.Epoch(), q.Now(), statsReport{}.Stats())
			return
		}
		p.series.Report(q.Agent(), q.Epoch(), q.Now(), statsReport{})
		q.MarkReported(0)
	})
}

// resend sends the reports again that are not acked, each under its own sequence.
func (w *world) resend(c *client) {
	for _, r := range c.inFlight {
		w.log("%s sends report %d again: %v", c, r.sequence, r.bits)
		if w.sendReport(c, r, true) != nil {
			w.ended(c)
			return
		}
	}
}

// received takes in that nothing up to a sequence need be sent again: what was counted of
// it is in the database.
func (w *world) received(c *client, sequence int64) {
	n := 0
	var acked reported
	for n < len(c.inFlight) && c.inFlight[n].sequence <= sequence {
		acked = acked.union(c.inFlight[n].bits)
		n++
	}
	if n == 0 {
		return
	}
	c.inFlight = slices.Clone(c.inFlight[n:])
	w.log("%s: reports %v are acked", c, acked)
	if lost := acked.without(w.written(c.agent.reg.ID)); lost.count() > 0 {
		w.watcher.fail(fmt.Errorf("%s: reports %v are acked and not written", c, lost))
	}
}

// written returns which reports of an agent the database has, or the watcher.
func (w *world) written(id agent.ID) (all reported) {
	for _, s := range w.db.ReportSums() {
		if s.Agent == id {
			all = all.union(setOf(&s))
		}
	}
	w.watcher.mu.Lock()
	defer w.watcher.mu.Unlock()
	return all.union(w.watcher.received[id])
}

// forgetReports notes what ends with the process of an agent.
func (c *client) forgetReports() {
	c.agent.mayBeLost = c.agent.mayBeLost.union(c.unsent)
	for _, r := range c.inFlight {
		c.agent.mayBeLost = c.agent.mayBeLost.union(r.bits)
	}
}

func (wa *watcher) fail(err error) {
	wa.mu.Lock()
	defer wa.mu.Unlock()
	wa.problem = errors.Join(wa.problem, err)
}

// checkWatched checks that no report is received twice, and none acked that is not
// written. Once quiescent, each is acked and received, but for what processes of agents
// took along that ended.
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
		received, lost := wa.received[a.reg.ID], a.mayBeLost
		if c := a.client; c != nil && c.session != nil && len(c.inFlight) > 0 {
			errs = append(errs, fmt.Errorf("%s: %d reports are not acked", c, len(c.inFlight)))
		} else if c != nil {
			lost = lost.union(c.unsent)
			for _, r := range c.inFlight {
				lost = lost.union(r.bits)
			}
		}
		if missing := a.reported.without(received).without(lost); missing.count() > 0 {
			errs = append(errs, fmt.Errorf("agent %d: its reports %v are not received", a.number, missing))
		}
		if made := received.without(a.reported); made.count() > 0 {
			errs = append(errs, fmt.Errorf("agent %d: reports %v are received, which it did not make", a.number, made))
		}
	}
	return errors.Join(errs...)
}

// countedReport is one that a process took in. Each has one byte in the gauges.
type countedReport struct {
	at       time.Time
	epoch    int64
	instance agent.Instance
	sequence int64
}

// Gauges of bytes are sums of the minute before the newest report, or of a second less or
// more.
const (
	gaugeWindow = time.Minute
	gaugeSlack  = time.Second
)

// checkGauges checks the gauges of bytes of each agent where it has its session. They
// have what was taken in on that session in the last minute, and no report twice.
func (w *world) checkGauges() error {
	if w.watcher == nil {
		return nil
	}
	for _, p := range w.slots {
		if !p.serving {
			continue
		}
		var text bytes.Buffer
		if err := p.series.WriteText(&text); err != nil {
			return err
		}
		for line := range strings.Lines(text.String()) {
			family, _, _ := strings.Cut(line, "{")
			if family != "coderd_agentstats_rx_bytes" {
				continue
			}
			i := slices.IndexFunc(w.agents[1:], func(a *simAgent) bool { return a.reg.Name == label(line, "agent_name") })
			c := w.agents[1+i].client
			if c == nil || c.session == nil || c.on != p || c.reported.IsZero() {
				continue
			}
			var gauge int
			_, _ = fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &gauge)
			if least, most := p.countedOf(c); gauge < least || gauge > most {
				return fmt.Errorf("%s: %s has %d bytes in a minute, want %d to %d", p.name, c, gauge, least, most)
			}
		}
	}
	return nil
}

// countedOf returns how many bytes the gauge of an agent has at least, and at most.
func (p *process) countedOf(c *client) (least, most int) {
	list := p.counted[c.agent.reg.ID]
	newest := list[len(list)-1].at
	list = slices.DeleteFunc(list, func(r countedReport) bool { return newest.Sub(r.at) > gaugeWindow+gaugeSlack })
	p.counted[c.agent.reg.ID] = list
	seen := make(map[countedReport]struct{})
	for _, r := range list {
		if r.epoch == c.epoch && newest.Sub(r.at) < gaugeWindow-gaugeSlack {
			least++
		}
		seen[countedReport{instance: r.instance, sequence: r.sequence}] = struct{}{}
	}
	return least, len(seen)
}
