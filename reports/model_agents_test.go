package reports

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

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
