package fleet

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

// maxLateRefusals bounds the refusals that wait for an instance's stream: with
// at most 16 names of 200 bytes each, 64 of them are 200 KB in the worst case.
const maxLateRefusals = 64

// maxInstances bounds the instances remembered of one agent. One is alive; the
// others are restarts within the retention.
const maxInstances = 4

// Progress is how far the requests of an instance have come.
type Progress struct {
	// Received is the highest sequence taken in; 0: none.
	Received int64
	// Durable is the lowest unsettled sequence - 1, never above Received.
	Durable int64
}

// LateRefusal is the refusal of something that had been taken in.
type LateRefusal struct {
	Sequence int64
	Refusal  agent.Refusal
}

// tracker implements agent.Tracker for one instance, over all its sessions.
type tracker struct {
	instance agent.Instance
	dropped  prometheus.Counter

	// detached is when the last session ended; zero while there is one.
	// Guarded by entry.mu.
	detached time.Time
	// ordinal of the instance's newest session here. Guarded by entry.mu.
	ordinal int64

	mu sync.Mutex
	// Guarded by mu.
	received int64
	held     []held // by sequence; none with a count of 0
	late     []LateRefusal
	session  *Session // that is told of news; nil: none
}

// held are the holds on one sequence. There are at most as many as the agent
// has keys and parts of its state: of each only the oldest pending is held.
type held struct {
	sequence int64
	count    int
}

func newTracker(instance agent.Instance, dropped prometheus.Counter) *tracker {
	return &tracker{instance: instance, dropped: dropped}
}

// Hold implements agent.Tracker.
func (t *tracker) Hold(sequence int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, found := t.find(sequence)
	if found {
		t.held[i].count++
		return
	}
	t.held = slices.Insert(t.held, i, held{sequence, 1})
}

// Settle implements agent.Tracker.
func (t *tracker) Settle(settled []agent.Settled) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, late := t.progressLocked(), len(t.late)
	for _, s := range settled {
		if s.Refusal != nil {
			t.refuseLocked(s.Sequence, *s.Refusal)
		}
		i, found := t.find(s.Sequence)
		if !found {
			continue
		}
		if t.held[i].count--; t.held[i].count == 0 {
			t.held = slices.Delete(t.held, i, i+1)
		}
	}
	if len(t.held) == 0 {
		t.held = nil // an idle agent holds no memory
	}
	if t.progressLocked() != before || len(t.late) != late {
		t.wakeLocked()
	}
}

func (t *tracker) find(sequence int64) (int, bool) {
	return slices.BinarySearchFunc(t.held, sequence, func(h held, s int64) int { return cmp.Compare(h.sequence, s) })
}

func (t *tracker) refuseLocked(sequence int64, r agent.Refusal) {
	if len(t.late) >= maxLateRefusals {
		t.dropped.Inc()
		return
	}
	t.late = append(t.late, LateRefusal{sequence, r})
}

// fresh tells whether the sequence is above all received ones.
func (t *tracker) fresh(sequence int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return sequence > t.received
}

// receive records that the request with the sequence was taken in.
func (t *tracker) receive(sequence int64) {
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
	if len(t.held) > 0 {
		p.Durable = min(p.Durable, t.held[0].sequence-1)
	}
	return p
}

func (t *tracker) takeLate() []LateRefusal {
	t.mu.Lock()
	defer t.mu.Unlock()
	late := t.late
	t.late = nil
	return late
}

// attach tells a session of news from now on.
func (t *tracker) attach(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.session = s
}

// detach tells the session of no more news; another one is left alone.
func (t *tracker) detach(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.session == s {
		t.session = nil
	}
}

func (t *tracker) wakeLocked() {
	if t.session != nil {
		t.session.news()
	}
}
