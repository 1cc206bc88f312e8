package batcher

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// pending has the entries that are not in the database: those that wait,
// oldest first, and those that are being written. It is not safe for
// concurrent use.
type pending struct {
	limits shares
	agents map[agent.ID]*agentEntries
	// owners counts the keys that have entries by the owner of their agents.
	owners map[agent.ID]int
	// queue has the waiting entries of all agents that are not in quarantine.
	queue queue
	// quarantine has the agents whose rows the database refused.
	quarantine map[agent.ID]*quarantined
	// confined counts the agents that came into quarantine.
	confined int64
	// waiting and writing count entries, those in quarantine too.
	waiting, writing int
	// writingSince is the oldest since of the entries that are being written and are
	// not in quarantine; 0: there are none.
	writingSince int64
	ledger       ledger
	stored       stored

	// spareEntries and spareAgents were released, and are for those to come:
	// agents report less often than is flushed, so most entries are new.
	spareEntries []*entry
	spareAgents  []*agentEntries
}

// Spares are kept for two flushes of 500 rows. By agents with 10 keys they take 0.2 MB.
// Where agents have the 1024 keys that can be declared they take 5 MB at most.
const (
	maxSpareEntries = 1000
	maxSpareAgents  = 100
)

// agentEntries are the entries of one agent.
type agentEntries struct {
	id   agent.ID
	keys map[string]*entry
	// owner that the keys are counted for; zero: none.
	owner agent.ID
	// quarantined is nil while the agent is not in quarantine.
	quarantined *quarantined
	// slot is the agent's index in the batch that is being assembled, + 1.
	slot int
}

// entry is one key of one agent: waiting, being written, or both, when a newer
// value arrived during the write.
type entry struct {
	agent      *agentEntries
	prev, next *entry // in the ring, if waiting
	// value and ack are those that wait, or else those that are being written.
	value   agent.Metadata
	ack     pendingAck
	waiting bool
	writing bool
	// since is when the entry began to wait, in nanoseconds since 1970. A newer value
	// that takes its place does not change it.
	since int64
	// removed says that the agent was, during the write.
	removed bool
}

func newPending(limits shares) *pending {
	p := &pending{
		limits:     limits,
		agents:     make(map[agent.ID]*agentEntries),
		owners:     make(map[agent.ID]int),
		quarantine: make(map[agent.ID]*quarantined),
		stored:     newStored(),
	}
	p.queue.init()
	return p
}

// queue is a ring of waiting entries, the oldest first. A newer value of a key
// takes over its place.
type queue struct {
	head entry
	n    int
}

func (q *queue) init() { q.head.prev, q.head.next = &q.head, &q.head }

// insert links e into the ring after prev.
func (q *queue) insert(e, prev *entry) {
	e.prev, e.next = prev, prev.next
	e.prev.next, e.next.prev = e, e
	q.n++
}

func (q *queue) remove(e *entry) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
	q.n--
}

// len is the number of entries: of a key whose newer value waits while an
// older one is being written, both count.
func (p *pending) len() int { return p.waiting + p.writing }

// add takes in the entries of r that are within the limits of a report, which are kept.
// refused has the others, and becomes those that do not fit. resolved gets the acks
// that are resolved.
func (p *pending) add(now time.Time, r *agent.MetadataReport, kept []agent.MetadataEntry, refused *refusals, resolved *resolutions) {
	p.ledger.received += int64(len(r.Entries))
	if len(kept) > 0 {
		a := p.agents[r.Agent]
		if a == nil {
			a = p.newAgent(r.Agent)
		}
		p.setOwner(a, r.Owner)
		unchanged := false
		for i := range kept {
			if p.unchanged(a, now, r, &kept[i]) {
				p.ledger.unchanged++
				unchanged = true
				continue
			}
			reason, full := p.put(a, now, r, &kept[i], resolved)
			if !full {
				continue
			}
			if first := refused.add(reason, kept[i].Key); first != nil {
				first.Kind = agent.RefusedLimit
				first.Message = p.fullMessage(a, reason)
			}
		}
		if unchanged {
			p.stored.confirmLater(now, pendingAck{r.Tracker, r.Order.Sequence})
		}
		p.trim(a)
	}
	for reason := range numDropReasons {
		p.ledger.dropped[reason] += int64(refused.count(reason))
	}
}

// unchanged reports whether an entry need not be written, as it is stored and nothing is
// pending of its key.
func (p *pending) unchanged(a *agentEntries, now time.Time, r *agent.MetadataReport, in *agent.MetadataEntry) bool {
	return len(p.stored.unconfirmed) < p.limits.all && a.keys[in.Key] == nil && p.stored.has(now, r, in)
}

// put takes in one entry. It is full if the key is new and there is no room for
// it, for the reason. Of values of equal order the later one counts: they are of
// one report.
func (p *pending) put(a *agentEntries, now time.Time, r *agent.MetadataReport, in *agent.MetadataEntry, resolved *resolutions) (reason dropReason, full bool) {
	e := a.keys[in.Key]
	next := pendingAck{r.Tracker, r.Order.Sequence}
	order, collected := &r.Order, now
	if in.Said != 0 {
		order, collected = &r.LateOrder, time.Unix(0, in.Said)
	}
	switch {
	case e == nil:
		if reason, full := p.full(a); full {
			return reason, true
		}
		e = p.newEntry()
		e.agent = a
		e.value.Agent, e.value.Key = a.id, strings.Clone(in.Key)
		a.keys[e.value.Key] = e
		p.count(a.owner, 1)
		e.since = now.UnixNano()
		p.pushBack(e)
		e.ack = next
		next.addPending()
	case order.Compare(e.value.Order) < 0,
		in.Said != 0 && e.ack.tracker != r.Tracker && e.value.CollectedAt.After(collected):
		// Its request does not wait: a newer value is on its way.
		p.ledger.coalesced++
		return 0, false
	case e.waiting:
		p.ledger.coalesced++
		e.ack = e.ack.overwrite(next, resolved)
	default: // being written, with an ack of its own
		e.since = now.UnixNano()
		p.pushBack(e)
		e.ack = next
		next.addPending()
	}
	keep(&e.value.Value, in.Value)
	keep(&e.value.Error, in.Error)
	e.value.CollectedAt, e.value.Order, e.value.Incarnation = collected, *order, r.Incarnation
	e.value.Late = in.Said != 0
	return 0, false
}

// keep makes text equal to s, whose bytes are somebody else's. Most values are
// those of the report before.
func keep(text *string, s string) {
	if *text != s {
		*text = strings.Clone(s)
	}
}

// fillBatch moves up to n of the oldest entries of q into b, which is empty.
func (p *pending) fillBatch(b *batch, q *queue, n int) {
	if q == &p.queue && q.n > 0 {
		p.writingSince = q.head.next.since
	}
	for range min(n, q.n) {
		e := q.head.next
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
		b.acks = append(b.acks, e.ack)
		b.fates = append(b.fates, failed)
	}
	for _, e := range b.entries {
		e.agent.slot = 0
	}
}

// finishBatch ends the writing that fillBatch began. Rows that were neither written
// nor rejected wait again, before all others and in their order. Agents with
// refused rows go into quarantine. resolved gets the acks that are resolved.
func (p *pending) finishBatch(b *batch, now time.Time, resolved *resolutions) {
	p.ledger.unchanged += int64(b.unchanged)
	p.ledger.flushed -= int64(b.unchanged)
	b.unsort()
	for _, e := range b.suspects {
		if !e.removed { // which the database refuses, too
			p.confine(e.value.Agent, now)
		}
	}
	for i := len(b.entries) - 1; i >= 0; i-- {
		e, ack := b.entries[i], b.acks[i]
		e.writing = false
		p.writing--
		switch {
		case b.fates[i] == written:
			p.ledger.flushed++
			if !e.removed {
				p.stored.note(now, &b.rows[i], p.limits.all)
			}
			resolved.add(ack, nil)
		case e.removed:
			p.drop(e, ack, dropDeregistered, resolved)
		case b.fates[i] == superseded: // its ack stays pending
			p.ledger.coalesced++
			p.stored.forget(b.rows[i].Agent)
		case b.fates[i] == rejected:
			p.drop(e, ack, dropRejected, resolved)
		case e.waiting: // a newer value, which takes the place of this one
			p.ledger.coalesced++
			e.ack = ack.join(e.ack, resolved)
			e.since = min(e.since, cmp.Or(p.writingSince, e.since))
			p.unlink(e)
			p.pushFront(e)
		default:
			p.pushFront(e)
		}
		switch {
		case e.waiting:
		case e.removed:
			p.count(e.agent.owner, -1)
		default:
			p.release(e)
		}
	}
	p.writingSince = 0
}

// age returns for how long the oldest entry of no agent in quarantine has been
// pending; 0: there is none.
func (p *pending) age(now time.Time) time.Duration {
	since := p.writingSince
	if since == 0 && p.queue.n > 0 {
		since = p.queue.head.next.since
	}
	if since == 0 {
		return 0
	}
	return max(0, time.Duration(now.UnixNano()-since))
}

// remove drops the entries of an agent; those that are being written are
// dropped by finishBatch unless the write succeeds. resolved gets the acks that are resolved.
func (p *pending) remove(id agent.ID, resolved *resolutions) {
	p.stored.forget(id)
	a := p.agents[id]
	if a == nil {
		return
	}
	delete(p.agents, id)
	for _, e := range a.keys {
		e.removed = true
		if e.waiting {
			p.unlink(e)
			p.drop(e, e.ack, dropDeregistered, resolved)
		}
		if !e.writing {
			p.count(a.owner, -1)
		}
	}
	delete(p.quarantine, id)
}

// drop counts an entry that is given up and resolves its ack. The refusal has no
// more than the agent may know.
func (p *pending) drop(e *entry, ack pendingAck, reason dropReason, resolved *resolutions) {
	p.ledger.dropped[reason]++
	if ack.tracker == nil {
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
	resolved.add(ack, refusal)
}

// queueOf returns the queue that the agent's entries wait in.
func (p *pending) queueOf(a *agentEntries) *queue {
	if a.quarantined != nil {
		return &a.quarantined.queue
	}
	return &p.queue
}

// pushFront has e wait before all others of its queue, pushBack after them.
func (p *pending) pushFront(e *entry) {
	q := p.queueOf(e.agent)
	p.push(e, q, &q.head)
}

func (p *pending) pushBack(e *entry) {
	q := p.queueOf(e.agent)
	p.push(e, q, q.head.prev)
}

func (p *pending) push(e *entry, q *queue, prev *entry) {
	q.insert(e, prev)
	e.waiting = true
	p.waiting++
}

func (p *pending) unlink(e *entry) {
	p.queueOf(e.agent).remove(e)
	e.waiting = false
	p.waiting--
}

// release forgets an entry that neither waits nor is being written.
func (p *pending) release(e *entry) {
	delete(e.agent.keys, e.value.Key)
	p.count(e.agent.owner, -1)
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
	*a = agentEntries{id: id, keys: a.keys, quarantined: p.quarantine[id]}
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
