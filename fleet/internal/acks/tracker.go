// Package acks tracks the requests of one instance of an agent: which are received,
// which are durable, and which refusals the instance has not confirmed.
package acks

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

// maxUnsent bounds the refusals that wait to be sent one by one. With at most 16
// names of 200 bytes each, 64 of them are 200 KB in the worst case. The others are
// sent as one summary.
const maxUnsent = 64

// Progress is how far the requests of an instance have come.
type Progress struct {
	// Received is the highest sequence up to which nothing need be sent again; 0: none.
	// What is above it can be received nevertheless: see Tracker.AddUnwritten.
	Received int64
	// Durable is the highest sequence up to which everything is stored, or was
	// refused with the refusal sent. It is at most Received.
	Durable int64
}

// Refusal is what was refused of one request of an instance or, as a summary, of
// several.
type Refusal struct {
	// First is 0, or the first sequence of a summary: parts of the requests from it
	// to Sequence were refused, and are not named.
	First int64
	// Sequence of the request, or the last one of a summary.
	Sequence int64
	agent.Refusal
}

// Stream is one stream that sends what a Tracker has for the instance. The zero
// value has no watcher.
type Stream struct {
	wake atomic.Pointer[func()]
}

// Watch registers wake, which must not block.
func (s *Stream) Watch(wake func()) { s.wake.Store(&wake) }

// Wake calls the watcher, if there is one.
func (s *Stream) Wake() {
	if wake := s.wake.Load(); wake != nil {
		(*wake)()
	}
}

// Tracker tracks the requests of one instance, over all its streams. A sequence is
// pending while a part of its request waits to be stored. It is unwritten while the
// instance must keep the counts of its report. A refusal has three states:
//
//	unsent --NextAck--> unconfirmed --Attach, confirmed--> dropped
//	   ^----Attach, not confirmed, as a summary---/
//
// Durable stays below all that is pending or unsent. So no ack covers a refusal that
// was not sent before. Received, and Durable with it, stays below all that is unwritten.
// At most one stream is attached.
type Tracker struct {
	summarized prometheus.Counter

	mu sync.Mutex
	// Guarded by mu.
	received    int64
	pending     []pendingSequence // by sequence
	unwritten   []int64           // rising
	unsent      []Refusal         // at most maxUnsent, in the order of receipt
	summary     span              // unsent, too, beyond maxUnsent
	unconfirmed span
	stream      *Stream // nil: none is attached

	held bool
	// heldFrom is the lowest sequence that was resolved while held; 0: none.
	heldFrom int64
}

// pendingSequence counts the pending parts of one request. There are at most as many
// as the agent has keys and parts of its state: of each only the oldest is pending.
type pendingSequence struct {
	sequence int64
	count    int // at least 1
}

// span is a number of refusals of the requests from first to last.
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

// New returns a tracker of an instance that has sent nothing. summarized counts the
// refusals that are sent in a summary.
func New(summarized prometheus.Counter) *Tracker { return &Tracker{summarized: summarized} }

// AddPending notes that a part of the request waits to be stored.
func (t *Tracker) AddPending(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, found := t.find(sequence)
	if found {
		t.pending[i].count++
		return
	}
	t.pending = slices.Insert(t.pending, i, pendingSequence{sequence, 1})
}

// Resolve ends one AddPending for each element, and adds its refusal if it has one. It
// returns the number of refused items.
func (t *Tracker) Resolve(resolutions []agent.Resolution) (refused int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.progressLocked()
	for _, r := range resolutions {
		if r.Refusal != nil {
			t.mergeRefusalLocked(r.Sequence, *r.Refusal)
			refused += max(r.Refusal.Count, 1)
		}
		i, found := t.find(r.Sequence)
		if !found {
			continue
		}
		if t.pending[i].count--; t.pending[i].count > 0 {
			continue
		}
		t.pending = slices.Delete(t.pending, i, i+1)
		if t.held && (t.heldFrom == 0 || r.Sequence < t.heldFrom) {
			t.heldFrom = r.Sequence
		}
	}
	if len(t.pending) == 0 {
		t.pending = nil // an idle agent retains no memory
	}
	if t.stream != nil && (refused > 0 || t.progressLocked() != before) {
		t.stream.Wake()
	}
	return refused
}

// AddUnwritten notes that the counts of the request's report wait to be written. It is
// called before MarkReceived, with a sequence above all received ones.
func (t *Tracker) AddUnwritten(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unwritten = append(t.unwritten, sequence)
}

// maxIdleUnwritten bounds the memory that an idle instance retains: most agents have one
// report unwritten, or none.
const maxIdleUnwritten = 2

// ReportWritten implements agent.ReportTracker: it ends AddUnwritten.
func (t *Tracker) ReportWritten(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, found := slices.BinarySearch(t.unwritten, sequence)
	if !found {
		return
	}
	before := t.progressLocked()
	t.unwritten = slices.Delete(t.unwritten, i, i+1)
	if len(t.unwritten) == 0 && cap(t.unwritten) > maxIdleUnwritten {
		t.unwritten = nil
	}
	if t.stream != nil && t.progressLocked() != before {
		t.stream.Wake()
	}
}

// Hold keeps Durable below what is resolved until Release.
func (t *Tracker) Hold() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = true
}

// Release ends Hold.
func (t *Tracker) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.progressLocked()
	t.held, t.heldFrom = false, 0
	if t.stream != nil && t.progressLocked() != before {
		t.stream.Wake()
	}
}

func (t *Tracker) find(sequence int64) (int, bool) {
	return slices.BinarySearchFunc(t.pending, sequence, func(p pendingSequence, s int64) int { return cmp.Compare(p.sequence, s) })
}

// AddRefusals adds refusals of a request before MarkReceived, so that no ack covers it
// until they are sent. It takes ownership of the refusals' names.
func (t *Tracker) AddRefusals(sequence int64, refused []agent.Refusal) {
	if len(refused) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range refused {
		t.addRefusalLocked(sequence, r)
	}
}

// mergeRefusalLocked merges a refusal of the database into an unsent one of the same
// request and reason: the database refuses items one by one.
func (t *Tracker) mergeRefusalLocked(sequence int64, r agent.Refusal) {
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

func (t *Tracker) addRefusalLocked(sequence int64, r agent.Refusal) {
	if len(t.unsent) >= maxUnsent {
		t.summarized.Inc()
		t.summary.join(span{sequence, sequence, max(r.Count, 1)})
		return
	}
	t.unsent = append(t.unsent, Refusal{Sequence: sequence, Refusal: r})
}

// IsNew returns whether the sequence is above all received ones, unwritten or not.
func (t *Tracker) IsNew(sequence int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return sequence > t.received
}

// MarkReceived notes that the request with the sequence was handled.
func (t *Tracker) MarkReceived(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.received = max(t.received, sequence)
}

// Progress returns the progress of the instance.
func (t *Tracker) Progress() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progressLocked()
}

func (t *Tracker) progressLocked() Progress {
	p := Progress{Received: t.received}
	if len(t.unwritten) > 0 {
		p.Received = min(p.Received, t.unwritten[0]-1)
	}
	p.Durable = p.Received
	if len(t.pending) > 0 {
		p.Durable = min(p.Durable, t.pending[0].sequence-1)
	}
	if t.heldFrom > 0 {
		p.Durable = min(p.Durable, t.heldFrom-1)
	}
	for i := range t.unsent {
		p.Durable = min(p.Durable, t.unsent[i].Sequence-1)
	}
	if t.summary.count > 0 {
		p.Durable = min(p.Durable, t.summary.first-1)
	}
	return p
}

// NextAck returns what the stream sends next: the unsent refusals, then the progress,
// which covers them. False: the stream is not attached.
func (t *Tracker) NextAck(s *Stream) (Progress, []Refusal, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stream != s {
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

// reasonSummary is the reason of a summary.
const reasonSummary = "summary"

func summaryOf(count int) agent.Refusal {
	return agent.Refusal{
		Kind:    agent.RefusedStore,
		Reason:  reasonSummary,
		Message: "parts of these requests were refused, too many to name each",
		Count:   count,
	}
}

// UnsentCount returns the number of unsent refusals, without those of the summary.
func (t *Tracker) UnsentCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.unsent)
}

// Attach replaces the attached stream, and returns the progress to resume from. The
// instance received all acks up to confirmed. Unconfirmed refusals above it become
// unsent again, as a summary.
func (t *Tracker) Attach(s *Stream, confirmed int64) Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unconfirmed.last > confirmed {
		again := t.unconfirmed
		again.first = max(again.first, confirmed+1)
		t.summary.join(again)
	}
	t.unconfirmed = span{}
	t.stream = s
	return t.progressLocked()
}

// Detach detaches the stream, if it is attached. It is not woken any more.
func (t *Tracker) Detach(s *Stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stream == s {
		t.stream = nil
	}
}
