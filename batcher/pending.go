package batcher

import (
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// pending holds the entries that are not in the database: those that wait,
// oldest first, and those that are being written. It is not safe for
// concurrent use.
type pending struct {
	limit  int
	agents map[agent.ID]*agentEntries
	// queue is the head of the ring of waiting entries: next is the oldest. A
	// newer value of a key takes over its place.
	queue            entry
	waiting, writing int
	ledger           ledger

	// spareEntries and spareAgents were released, and are for those to come:
	// agents report less often than is flushed, so most entries are new.
	spareEntries []*entry
	spareAgents  []*agentEntries
}

// Spares are kept for two flushes of 500 rows, by agents with 10 keys: 0.2 MB,
// and at most 5 MB where agents have the 1024 keys that can be declared.
const (
	maxSpareEntries = 1000
	maxSpareAgents  = 100
)

// agentEntries are the entries of one agent.
type agentEntries struct {
	id   agent.ID
	keys map[string]*entry
	// slot is the agent's index in the batch that is being assembled, + 1.
	slot int
}

// entry is one key of one agent: waiting, being written, or both, when a newer
// value arrived during the write.
type entry struct {
	agent      *agentEntries
	prev, next *entry // in the ring, if waiting
	// value and hold are those that wait, or else those that are being written.
	value   agent.Metadata
	hold    hold
	waiting bool
	writing bool
	// removed says that the agent was, during the write.
	removed bool
}

// batch is what one flush writes. Its buffers are used again.
type batch struct {
	// rows are given to the store; the slices below are parallel to them.
	rows    []agent.Metadata
	entries []*entry
	holds   []hold
	fates   []fate
	// changed has the agent of each written row that changed something; unchanged
	// is how many did not.
	changed   []agent.ID
	unchanged int

	// agents is how many rows each agent has, by slot.
	agents []int
}

// fate is what became of a row.
type fate uint8

const (
	failed fate = iota // not tried, or the database could not
	written
	rejected // by the database, for good
)

func newPending(limit int) *pending {
	p := &pending{limit: limit, agents: make(map[agent.ID]*agentEntries)}
	p.queue.prev, p.queue.next = &p.queue, &p.queue
	return p
}

// len is the number of entries: of a key whose newer value waits while an
// older one is being written, both count.
func (p *pending) len() int { return p.waiting + p.writing }

// add takes in the entries of r that are within the limits of a report, kept;
// refused are the others, and becomes those that do not fit. ends gets the
// holds that end.
func (p *pending) add(now time.Time, r *agent.MetadataReport, kept []agent.MetadataEntry, refused *refusals, ends *settlements) {
	p.ledger.received += int64(len(r.Entries))
	if len(kept) > 0 {
		a := p.agents[r.Agent]
		if a == nil {
			a = p.newAgent(r.Agent)
		}
		for i := range kept {
			if p.put(a, now, r, &kept[i], ends) {
				continue
			}
			if first := refused.add(dropCapacity, kept[i].Key); first != nil {
				first.Kind = agent.RefusedLimit
				first.Message = fmt.Sprintf("%d metadata values wait for the database, limit %d: no new key now", p.len(), p.limit)
			}
		}
		p.trim(a)
	}
	for reason := range numDropReasons {
		p.ledger.dropped[reason] += int64(refused.count(reason))
	}
}

// put takes in one entry, and returns false if its key is new and p is full.
// Of values of equal order the later one counts: they are of one report.
func (p *pending) put(a *agentEntries, now time.Time, r *agent.MetadataReport, in *agent.MetadataEntry, ends *settlements) bool {
	e := a.keys[in.Key]
	next := hold{r.Tracker, r.Order.Sequence}
	switch {
	case e == nil:
		if p.len() >= p.limit {
			return false
		}
		e = p.newEntry()
		e.agent = a
		e.value.Agent, e.value.Key = a.id, strings.Clone(in.Key)
		a.keys[e.value.Key] = e
		p.push(e, p.queue.prev)
		e.hold = next
		next.begin()
	case r.Order.Compare(e.value.Order) < 0:
		// Its request is not held: a newer value is on its way.
		p.ledger.coalesced++
		return true
	case e.waiting:
		p.ledger.coalesced++
		e.hold = e.hold.overwrite(next, ends)
	default: // being written, with a hold of its own
		p.push(e, p.queue.prev)
		e.hold = next
		next.begin()
	}
	keep(&e.value.Value, in.Value)
	keep(&e.value.Error, in.Error)
	e.value.CollectedAt, e.value.Order = now, r.Order
	return true
}

// keep makes text equal to s, whose bytes are somebody else's. Most values are
// those of the report before.
func keep(text *string, s string) {
	if *text != s {
		*text = strings.Clone(s)
	}
}

// take moves up to n of the oldest waiting entries into b, which is empty.
func (p *pending) take(b *batch, n int) {
	for range min(n, p.waiting) {
		e := p.queue.next
		p.unlink(e)
		e.writing = true
		p.writing++
		if e.agent.slot == 0 {
			b.agents = append(b.agents, 0)
			e.agent.slot = len(b.agents)
		}
		b.agents[e.agent.slot-1]++
		b.rows = append(b.rows, e.value)
		b.entries = append(b.entries, e)
		b.holds = append(b.holds, e.hold)
		b.fates = append(b.fates, failed)
	}
	for _, e := range b.entries {
		e.agent.slot = 0
	}
}

// land ends what take began: rows that were neither written nor rejected wait
// again, before all others and in their order. ends gets the holds that end.
func (p *pending) land(b *batch, ends *settlements) {
	p.ledger.unchanged += int64(b.unchanged)
	p.ledger.flushed -= int64(b.unchanged)
	for i := len(b.entries) - 1; i >= 0; i-- {
		e, h := b.entries[i], b.holds[i]
		e.writing = false
		p.writing--
		switch {
		case b.fates[i] == written:
			p.ledger.flushed++
			ends.add(h, nil)
		case e.removed:
			p.drop(e, h, dropDeregistered, ends)
		case b.fates[i] == rejected:
			p.drop(e, h, dropRejected, ends)
		case e.waiting: // a newer value, which takes the place of this one
			p.ledger.coalesced++
			e.hold = h.join(e.hold, ends)
			p.unlink(e)
			p.push(e, &p.queue)
		default:
			p.push(e, &p.queue)
		}
		if !e.waiting && !e.removed {
			p.release(e)
		}
	}
}

// reset empties b, keeping its buffers.
func (b *batch) reset() {
	clear(b.rows) // let go of the strings
	clear(b.entries)
	clear(b.holds)
	b.rows, b.entries, b.holds = b.rows[:0], b.entries[:0], b.holds[:0]
	b.fates, b.agents, b.changed = b.fates[:0], b.agents[:0], b.changed[:0]
	b.unchanged = 0
}

// remove drops the entries of an agent; those that are being written are
// dropped by land unless the write succeeds. ends gets the holds that end.
func (p *pending) remove(id agent.ID, ends *settlements) {
	a := p.agents[id]
	if a == nil {
		return
	}
	delete(p.agents, id)
	for _, e := range a.keys {
		e.removed = true
		if e.waiting {
			p.unlink(e)
			p.drop(e, e.hold, dropDeregistered, ends)
		}
	}
}

// drop counts an entry that is given up and tells its tracker, in words that
// hold no more than the agent may know.
func (p *pending) drop(e *entry, h hold, reason dropReason, ends *settlements) {
	p.ledger.dropped[reason]++
	if h.tracker == nil {
		return
	}
	refusal := &agent.Refusal{Kind: agent.RefusedStore, Reason: reason.String(), Count: 1}
	refusal.Names = []string{refusedName(e.value.Key)}
	if reason == dropDeregistered {
		refusal.Kind = agent.RefusedNotAllowed
		refusal.Message = "the agent was deregistered"
	} else {
		refusal.Message = fmt.Sprintf("the database refused the value of key %q", refusal.Names[0])
	}
	ends.add(h, refusal)
}

// push links e into the ring after prev.
func (p *pending) push(e, prev *entry) {
	e.prev, e.next = prev, prev.next
	e.prev.next, e.next.prev = e, e
	e.waiting = true
	p.waiting++
}

func (p *pending) unlink(e *entry) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
	e.waiting = false
	p.waiting--
}

// release forgets an entry that neither waits nor is being written.
func (p *pending) release(e *entry) {
	delete(e.agent.keys, e.value.Key)
	p.trim(e.agent)
	if len(p.spareEntries) < maxSpareEntries {
		*e = entry{}
		p.spareEntries = append(p.spareEntries, e)
	}
}

// trim forgets an agent that has no entries.
func (p *pending) trim(a *agentEntries) {
	if len(a.keys) == 0 {
		delete(p.agents, a.id)
		if len(p.spareAgents) < maxSpareAgents {
			p.spareAgents = append(p.spareAgents, a)
		}
	}
}

func (p *pending) newAgent(id agent.ID) *agentEntries {
	a := pop(&p.spareAgents)
	if a == nil {
		a = &agentEntries{keys: make(map[string]*entry)}
	}
	a.id = id
	p.agents[id] = a
	return a
}

func (p *pending) newEntry() *entry {
	if e := pop(&p.spareEntries); e != nil {
		return e
	}
	return new(entry)
}

// pop takes the last one of list, nil if it is empty.
func pop[E any](list *[]*E) *E {
	n := len(*list)
	if n == 0 {
		return nil
	}
	e := (*list)[n-1]
	(*list)[n-1] = nil
	*list = (*list)[:n-1]
	return e
}
