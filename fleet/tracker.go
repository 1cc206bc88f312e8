package fleet

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// maxUntold bounds the refusals that an instance is yet to be told one by one:
// with at most 16 names of 200 bytes each, 64 of them are 200 KB in the worst
// case. What comes beyond is told as one summary.
const maxUnsent = 64

// maxInstances bounds the instances remembered of one agent. One is alive; the
// others are restarts within the retention.
const maxInstances = 4

// Progress is how far the requests of an instance have come.
type Progress struct {
	// Received is the highest sequence taken in; 0: none.
	Received int64
	// Durable is the highest sequence up to which everything is stored, or was
	// refused and is told; never above Received.
	Durable int64
}

// Refusal is what was refused of one request of an instance, or, as a summary,
// of some of several.
type Refusal struct {
	// First is 0, or the first sequence of a summary: something of the requests
	// from it to Sequence was refused that is not told by name.
	First int64
	// Sequence of the request, or the last one of a summary.
	Sequence int64
	agent.Refusal
}

// tracker implements agent.Tracker for one instance, over all its sessions. A
// refusal passes from untold, when a session takes it, to sent. It leaves that
// when the instance says in a later session that it knows an ack that covers
// it; else it may not have arrived and is told again, as a summary. Durable
// stops below all that is untold.
type tracker struct {
	instance agent.Instance
	fleet    *Fleet
	entry    *entry // whose instance it is

	// detached is when the last session ended; zero while there is one.
	// Guarded by entry.mu.
	detachedAt time.Time
	// ordinal and epoch of the instance's newest session here. Guarded by entry.mu.
	ordinal, epoch int64

	mu sync.Mutex
	// Guarded by mu.
	received    int64
	pending     []pendingSequence // by sequence; none with a count of 0
	unsent      []Refusal         // in the order in which they came, at most maxUntold
	summary     span              // of what is untold, too, and was too much to keep
	unconfirmed span              // of what sessions took
	session     *Session          // that tells the instance, and is woken; nil: none
}

// span are refusals of requests from one sequence to another.
type span struct {
	first, last int64
	count       int // 0: none
}

func (s *span) join(o span) {
	switch {
	case o.count == 0:
	case s.count == 0:
		*s = o
	default:
		*s = span{min(s.first, o.first), max(s.last, o.last), s.count + o.count}
	}
}

// held are the holds on one sequence. There are at most as many as the agent
// has keys and parts of its state: of each only the oldest pending is held.
type pendingSequence struct {
	sequence int64
	count    int
}

func newTracker(f *Fleet, e *entry, instance agent.Instance) *tracker {
	return &tracker{instance: instance, fleet: f, entry: e}
}

// AddPending implements agent.Tracker.
func (t *tracker) AddPending(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, found := t.findPending(sequence)
	if found {
		t.pending[i].count++
		return
	}
	t.pending = slices.Insert(t.pending, i, pendingSequence{sequence, 1})
}

// Resolve implements agent.Tracker. What is refused is charged to the agent: if
// anything is, the caller must not hold entry.mu.
func (t *tracker) Resolve(settled []agent.Resolution) {
	if refused := t.resolve(settled); refused > 0 {
		t.fleet.chargeRefused(t.entry, refused, 0)
	}
}

// settle returns how many items were refused.
func (t *tracker) resolve(settled []agent.Resolution) (refused int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.progressLocked()
	for _, s := range settled {
		if s.Refusal != nil {
			t.mergeRefusalLocked(s.Sequence, *s.Refusal)
			refused += max(s.Refusal.Count, 1)
		}
		i, found := t.findPending(s.Sequence)
		if !found {
			continue
		}
		if t.pending[i].count--; t.pending[i].count == 0 {
			t.pending = slices.Delete(t.pending, i, i+1)
		}
	}
	if len(t.pending) == 0 {
		t.pending = nil // an idle agent holds no memory
	}
	if refused > 0 || t.progressLocked() != before {
		t.notifyLocked()
	}
	return refused
}

func (t *tracker) findPending(sequence int64) (int, bool) {
	return slices.BinarySearchFunc(t.pending, sequence, func(h pendingSequence, s int64) int { return cmp.Compare(h.sequence, s) })
}

// refuse records what was refused of a request before it is received, so that no
// ack covers it until it is told. It takes ownership of the refusals' names.
func (t *tracker) addRefusals(sequence int64, refused []agent.Refusal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range refused {
		t.addRefusalLocked(sequence, r)
	}
}

// refuseLateLocked joins what the database refuses of one request: it comes one
// by one.
func (t *tracker) mergeRefusalLocked(sequence int64, r agent.Refusal) {
	for i := range t.unsent {
		u := &t.unsent[i]
		if u.Sequence == sequence && u.Kind == r.Kind && u.Reason == r.Reason {
			u.Names = append(u.Names, r.Names[:min(len(r.Names), agent.MaxRefusalNames-len(u.Names))]...)
			u.Count += r.Count
			return
		}
	}
	t.addRefusalLocked(sequence, r)
}

func (t *tracker) addRefusalLocked(sequence int64, r agent.Refusal) {
	if len(t.unsent) >= maxUnsent {
		t.fleet.metrics.summarized.Inc()
		t.summary.join(span{sequence, sequence, max(r.Count, 1)})
		return
	}
	t.unsent = append(t.unsent, Refusal{Sequence: sequence, Refusal: r})
}

// fresh tells whether the sequence is above all received ones.
func (t *tracker) isNew(sequence int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return sequence > t.received
}

// receive records that the request with the sequence was taken in.
func (t *tracker) markReceived(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.received = max(t.received, sequence)
}

func (t *tracker) progress() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progressLocked()
}

func (t *tracker) progressLocked() Progress {
	p := Progress{Received: t.received, Durable: t.received}
	if len(t.pending) > 0 {
		p.Durable = min(p.Durable, t.pending[0].sequence-1)
	}
	for i := range t.unsent {
		p.Durable = min(p.Durable, t.unsent[i].Sequence-1)
	}
	if t.summary.count > 0 {
		p.Durable = min(p.Durable, t.summary.first-1)
	}
	return p
}

// take returns what the session is to tell, the refusals before the progress,
// which covers them. False: another session has taken its place.
func (t *tracker) nextAck(s *Session) (Progress, []Refusal, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.session != s {
		return Progress{}, nil, false
	}
	refusals := t.unsent
	t.unsent = nil
	for i := range refusals {
		t.unconfirmed.join(span{refusals[i].Sequence, refusals[i].Sequence, refusals[i].Count})
	}
	if t.summary.count > 0 {
		refusals = append(refusals, Refusal{First: t.summary.first, Sequence: t.summary.last, Refusal: summaryOf(t.summary.count)})
		t.unconfirmed.join(t.summary)
		t.summary = span{}
	}
	return t.progressLocked(), refusals, true
}

// reasonSummary is the reason of a refusal that stands for several.
const reasonSummary = "summary"

func summaryOf(count int) agent.Refusal {
	return agent.Refusal{
		Kind:    agent.RefusedStore,
		Reason:  reasonSummary,
		Message: "something of these requests was refused, and is not told one by one",
		Count:   count,
	}
}

// waiting returns how many refusals are untold.
func (t *tracker) unsentCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.unsent)
}

// attach makes s the session that tells the instance from now on, and returns
// the progress that it begins with. The instance knows acks up to confirmed.
func (t *tracker) attach(s *Session, confirmed int64) Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unconfirmed.last > confirmed {
		again := t.unconfirmed
		again.first = max(again.first, confirmed+1)
		t.summary.join(again)
	}
	t.unconfirmed = span{}
	t.session = s
	return t.progressLocked()
}

// detach tells the session of no more news; another one is left alone.
func (t *tracker) detach(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.session == s {
		t.session = nil
	}
}

func (t *tracker) notifyLocked() {
	if t.session != nil {
		t.session.notify()
	}
}
