package batcher

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// An agent whose rows the database refused is in quarantine. Its entries wait in a
// queue of their own and are written apart, a few at a time. So the search for its bad
// rows delays nobody else's. It leaves once none was refused for quarantineTime and
// nothing of it waits.
const (
	quarantineTime = 10 * time.Minute
	// maxQuarantined bounds the agents in quarantine, 0.4 KB each. The bad rows of
	// more are found at once, each time.
	maxQuarantined = 10_000
	// quarantineRows are written of one agent first. While none is refused, the
	// number doubles up to the batch size.
	quarantineRows = 8
	// quarantineCalls of the store are made after each scheduled flush at most, by all
	// agents together. 64 of 5 ms are a third of a second of five. Finding
	// quarantineRows bad rows takes 15.
	quarantineCalls = 64
)

// quarantined is an agent in quarantine.
type quarantined struct {
	agent agent.ID
	queue queue
	// until is when it may leave; refusals put it off.
	until time.Time
	// served is the flush that wrote something of it last.
	served uint64
}

// confine puts the agent into quarantine, or keeps it there, from now on.
func (p *pending) confine(id agent.ID, now time.Time) {
	q := p.quarantine[id]
	if q == nil {
		if len(p.quarantine) >= maxQuarantined {
			return
		}
		q = &quarantined{agent: id}
		q.queue.init()
		p.quarantine[id] = q
		p.confined++
	}
	q.until = now.Add(quarantineTime)
	a := p.agents[id]
	if a == nil || a.quarantined != nil {
		return
	}
	var moved []*entry
	for _, e := range a.keys {
		if e.waiting {
			moved = append(moved, e)
		}
	}
	// In the order in which they became pending, so that durable moves.
	slices.SortFunc(moved, func(a, b *entry) int { return cmp.Compare(a.ack.sequence, b.ack.sequence) })
	for _, e := range moved {
		p.unlink(e)
	}
	a.quarantined = q
	for _, e := range moved {
		p.pushBack(e)
	}
}

// nextQuarantined returns the agent in quarantine that has waited longest for
// the flush, nil if there is none left; those whose time is over leave.
func (p *pending) nextQuarantined(flush uint64, now time.Time) *quarantined {
	var next *quarantined
	for id, q := range p.quarantine {
		switch {
		case q.queue.n > 0:
			if q.served < flush && (next == nil || q.served < next.served) {
				next = q
			}
		case now.After(q.until):
			delete(p.quarantine, id)
			if a := p.agents[id]; a != nil {
				a.quarantined = nil
			}
		}
	}
	return next
}

// flushQuarantine writes what waits of agents in quarantine, within the limit of
// calls. Of an agent that has a row refused no more is written this time.
func (b *Batcher) flushQuarantine(work context.Context, reason string, calls int) error {
	b.passes++
	b.calls = 0
	refusedRows := 0
	var first error
	defer func() {
		if refusedRows > 0 {
			b.logRefused(work, refusedRows, first)
		}
	}()
	for b.calls < calls {
		b.mu.Lock()
		q := b.pending.nextQuarantined(b.passes, time.Now())
		b.mu.Unlock()
		if q == nil {
			return nil
		}
		q.served = b.passes
		for rows := min(quarantineRows, b.opts.Load().BatchSize); b.calls < calls; rows = min(2*rows, b.opts.Load().BatchSize) {
			done, err := b.flush(work, reason, &q.queue, rows, b.writeRows)
			refusedRows += done.rejected
			first = cmp.Or(first, done.refused)
			if err != nil {
				return err
			}
			if done.rows == 0 || done.refused != nil {
				break
			}
		}
	}
	return nil
}

// writeAgents upserts rows from to to of the batch and notes what became of each. If
// the database refuses the data, the rows are sorted by agent. Then halves of the
// agents are tried, until each one with refused rows stands alone. That is about 2
// log2(50) = 11 calls for one agent of 50. Its rows stay failed, and it goes into
// quarantine. It returns the first refusal, and the first error that may pass; rows not
// yet tried stay failed.
func (b *Batcher) writeAgents(ctx context.Context, from, to int) (refused error, err error) {
	err = b.tryRows(ctx, from, to)
	if !errors.Is(err, agent.ErrRejected) {
		return nil, err
	}
	if to-from == len(b.batch.rows) {
		b.batch.sortByAgent()
	}
	if id := b.batch.rows[from].Agent; id == b.batch.rows[to-1].Agent {
		if !b.canConfine(id) {
			return b.writeRows(ctx, from, to)
		}
		b.batch.suspects = append(b.batch.suspects, b.batch.entries[from])
		if to-from == 1 {
			b.batch.note(from, to, rejected)
		}
		return err, nil
	}
	middle := b.batch.middle(from, to)
	left, err := b.writeAgents(ctx, from, middle)
	if err != nil {
		return left, err
	}
	right, err := b.writeAgents(ctx, middle, to)
	return cmp.Or(left, right), err
}

// canConfine reports whether an agent can be in quarantine.
func (b *Batcher) canConfine(id agent.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pending.quarantine[id] != nil || len(b.pending.quarantine) < maxQuarantined
}

// writeRows is writeAgents for rows of one agent: halves are tried until the
// refused rows stand alone.
func (b *Batcher) writeRows(ctx context.Context, from, to int) (refused error, err error) {
	err = b.tryRows(ctx, from, to)
	switch {
	case !errors.Is(err, agent.ErrRejected):
		return nil, err
	case to-from == 1:
		b.batch.suspects = append(b.batch.suspects, b.batch.entries[from])
		b.batch.note(from, to, rejected)
		return err, nil
	}
	middle := from + (to-from)/2
	left, err := b.writeRows(ctx, from, middle)
	if err != nil {
		return left, err
	}
	right, err := b.writeRows(ctx, middle, to)
	return cmp.Or(left, right), err
}

// tryRows upserts rows from to to of the batch, all or none.
func (b *Batcher) tryRows(ctx context.Context, from, to int) error {
	b.calls++
	changed, newer, err := b.upsert(ctx, b.batch.rows[from:to])
	if err != nil {
		return err
	}
	b.batch.changed = append(b.batch.changed, changed...)
	b.batch.unchanged += to - from - len(changed)
	b.batch.note(from, to, written)
	b.batch.noteNewer(from, to, newer)
	return nil
}

// noteNewer notes the rows that lost against another session or incarnation.
func (b *batch) noteNewer(from, to int, newer []agent.StoredEpoch) {
	if len(newer) == 0 {
		return
	}
	type key struct {
		agent agent.ID
		key   string
	}
	epochs := make(map[key]int64, len(newer))
	for _, n := range newer {
		epochs[key{n.Agent, n.Key}] = n.Epoch
	}
	for i := from; i < to; i++ {
		if epoch, is := epochs[key{b.rows[i].Agent, b.rows[i].Key}]; is {
			b.fates[i] = superseded
			b.unchanged--
			b.lost = append(b.lost, lost{b.acks[i].tracker, epoch})
		}
	}
}

// sortByAgent brings the rows of each agent together, in their order.
func (b *batch) sortByAgent() {
	order := b.order[:0]
	order = slices.Grow(order, len(b.rows))[:len(b.rows)]
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return bytes.Compare(b.rows[i].Agent[:], b.rows[j].Agent[:]) })
	b.rows = permuted(b.rows, order)
	b.entries = permuted(b.entries, order)
	b.acks = permuted(b.acks, order)
	b.fates = permuted(b.fates, order)
	b.order = order
}

// unsort brings the rows into the order in which they were taken.
func (b *batch) unsort() {
	if len(b.order) == 0 {
		return
	}
	back := make([]int, len(b.order))
	for i, from := range b.order {
		back[from] = i
	}
	b.rows = permuted(b.rows, back)
	b.entries = permuted(b.entries, back)
	b.acks = permuted(b.acks, back)
	b.fates = permuted(b.fates, back)
	b.order = b.order[:0]
}

func permuted[E any](list []E, order []int) []E {
	out := make([]E, len(list))
	for i, from := range order {
		out[i] = list[from]
	}
	return out
}

// middle returns where the agents of rows from to to, which are more than one,
// are parted in about two halves.
func (b *batch) middle(from, to int) int {
	middle := from + (to-from)/2
	lo, hi := middle, middle
	for lo > from && b.rows[lo-1].Agent == b.rows[middle].Agent {
		lo--
	}
	for hi < to && b.rows[hi].Agent == b.rows[middle].Agent {
		hi++
	}
	if hi == to || lo > from && middle-lo < hi-middle {
		return lo
	}
	return hi
}

func (b *batch) note(from, to int, f fate) {
	for i := from; i < to; i++ {
		b.fates[i] = f
	}
}
