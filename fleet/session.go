package fleet

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/acks"
)

// End is how a session ended.
type End string

// The ends of sessions. The caller of Close names those of the first group. The
// fleet names the others.
const (
	EndGoodbye    End = "goodbye"    // the agent goes away for good
	EndDisconnect End = "disconnect" // its stream ended or broke
	EndDrain      End = "drain"      // the service stops
	EndRefused    End = "refused"    // the agent broke the contract

	EndTakeover     End = "takeover"     // a newer session of the agent
	EndDeregistered End = "deregistered" // coderd removed the agent
	EndSuperseded   End = "superseded"   // the agent of a newer build took its place
	EndRevoked      End = "revoked"      // the agent has another token now
	EndAged         End = "aged"         // the agent ignored the request to reconnect
	EndOutdated     End = "outdated"     // the database has a newer epoch of the agent
)

var allEnds = []End{
	EndGoodbye, EndDisconnect, EndDrain, EndRefused,
	EndTakeover, EndDeregistered, EndSuperseded, EndRevoked, EndAged, EndOutdated,
}

// Session is a session of an agent. It is live from Connect until Done is closed;
// its end is final. Acks and refusals of the instance go through the session that
// is attached to the tracker.
type Session struct {
	fleet *Fleet
	entry *entry
	// reg is the agent's registration, replaced under entry.mu with that: requests read it
	// often.
	reg      atomic.Pointer[agent.Registration]
	info     agent.Session
	instance *instance
	order    agent.Order // of its requests, without their sequence
	hello    Hello
	openedAt time.Time // when the hello was received
	resume   Progress
	token    [32]byte // hash of the agent's token when the session opened

	done   chan struct{}
	aged   atomic.Bool
	stream acks.Stream // its watcher is that of the session

	end End // written before done is closed

	// Guarded by entry.mu.
	ageAt         time.Time // zero: never
	closeAt       time.Time // zero: the agent was not asked to reconnect yet
	saidLifecycle bool
}

// Hello is what an instance sends when it connects.
type Hello struct {
	Instance agent.Instance
	// Ordinal counts the sessions of the instance, from 1. 0, of an instance that
	// does not count, is treated as above 1.
	Ordinal int64
	// Epoch of the instance's previous session; 0: not known.
	Epoch int64
	// Durable is the highest durable sequence that the instance received. It has
	// all refusals up to that one.
	Durable int64
	// Relayed is true if the instance is not the agent's process, but a relay for it.
	// The agent may have others.
	Relayed bool
	// Version of the agent, as it says itself; empty: it does not.
	Version string
}

// Connect opens a session of the agent. An older session, on any replica, ends with
// EndTakeover. Connect waits for the database only if this replica does not know
// the agent. Errors: ErrUnknownAgent, ErrUnavailable.
func (f *Fleet) Connect(ctx context.Context, id agent.ID, hello Hello) (*Session, error) {
	e, err := f.lookUp(ctx, ErrUnknownAgent, func(r *registry) *entry { return r.agents.Get(id) })
	if err != nil {
		return nil, err
	}
	e.requestMu.Lock()
	defer e.requestMu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.availableLocked(); err != nil {
		return nil, err
	}
	now := time.Now()
	a, past := e.activeLocked(), e.historyLocked()
	past.lastSeen = now.UnixNano()
	if a.live != nil {
		f.endSessionLocked(a.live, EndTakeover)
	}
	i, known := f.instanceLocked(e, hello.Instance)
	moved, remembered := f.mayHaveMovedLocked(e, i.ordinal, hello.Ordinal), known
	if moved && i.unconfirmed != 0 {
		// The record of the other replica's session may have been stored before that of
		// the one here: see confirmSessions. Then this session would end soon.
		e.forgetInstanceLocked(i)
		i, remembered = f.instanceLocked(e, hello.Instance)
	}
	i.ordinal = hello.Ordinal
	reg := e.reg.Load()
	// What it reported to another replica was counted there.
	past.unreported = (past.unreported || past.newest.Epoch == 0) && !moved
	first := hello.Ordinal == 1 && !known
	if hello.Relayed {
		first = past.unreported && !moved
	}
	wasRelayed := past.newest.Relayed
	order := f.assignEpochLocked(e, &hello)
	i.epoch = order.Epoch
	if f.peers != nil {
		i.holdLocked()
	}
	s := &Session{
		fleet:    f,
		token:    reg.TokenHash,
		entry:    e,
		instance: i,
		order:    order,
		hello:    hello,
		openedAt: now,
		info: agent.Session{
			Epoch:    order.Epoch,
			Instance: hello.Instance,
			First:    first,
			Relayed:  hello.Relayed,
			Moved:    moved,
			Unknown:  !remembered && hello.Ordinal > 1,
		},
		done: make(chan struct{}),
	}
	if age := f.opts.Load().SessionAge; age > 0 {
		s.ageAt = now.Add(age - age/10 + time.Duration(f.opts.Load().Random()*float64(age/5)))
	}
	s.reg.Store(e.registration())
	a.live = s
	i.detachedAt = time.Time{}
	s.resume = i.Attach(&s.stream, hello.Durable)
	f.metrics.sessions.Inc()
	f.openSeriesLocked(e, s.info)
	f.publishPresenceLocked(e, now)
	if wasRelayed != hello.Relayed {
		f.watchers.Notify(e.id)
	}
	return s, nil
}

// maxEpochAhead bounds how far an epoch that an agent sends may be ahead of the
// clock: more than clocks of replicas differ. A higher one is ignored.
const maxEpochAhead = time.Hour

// assignEpochLocked makes the newest session record of the agent, with a new epoch.
// It queues the record for publication and for the database.
func (f *Fleet) assignEpochLocked(e *entry, hello *Hello) agent.Order {
	sent := hello.Epoch
	now := f.opts.Load().Now()
	past := e.historyLocked()
	last := max(past.newest.Epoch, past.storedEpoch)
	previous := past.newest.Epoch
	if sent != 0 && sent < now.Add(maxEpochAhead).UnixNano() {
		last, previous = max(last, sent), sent
	}
	past.newest = agent.SessionRecord{
		Agent:   e.id,
		Epoch:   agent.NextEpoch(now, last, f.self(), e.reg.Load().Incarnation),
		Replica: f.self(),
		Open:    true,
		Relayed: hello.Relayed,
	}
	f.queueSessionLocked(e)
	order := agent.Order{Epoch: past.newest.Epoch}
	if f.peers != nil {
		order.Basis, order.Previous = max(past.recordedEpoch, 1), previous
	}
	return order
}

// endSessionLocked ends a live session. The caller closes its series.
func (f *Fleet) endSessionLocked(s *Session, end End) {
	details := s.details()
	details.End, details.EndedAt = string(end), time.Now()
	f.ended.Add(s.entry.id, details)
	s.entry.activeLocked().live, s.entry.historyLocked().endedAt = nil, details.EndedAt.UnixNano()
	f.closeRecordLocked(s.entry, s.info.Epoch)
	s.end = end
	close(s.done)
	s.stream.Wake()
	s.instance.detachedAt = time.Now()
	if end != EndGoodbye {
		s.instance.Detach(&s.stream)
	}
	f.metrics.sessions.Dec()
	f.metrics.sessionsEnded.WithLabelValues(string(end)).Inc()
}

// Info returns the session's epoch and instance.
func (s *Session) Info() agent.Session { return s.info }

// Resume returns the progress of the instance when the session opened.
func (s *Session) Resume() Progress { return s.resume }

// Done returns a channel that is closed when the session ends.
func (s *Session) Done() <-chan struct{} { return s.done }

// End returns how the session ended. It is valid once Done is closed.
func (s *Session) End() End { return s.end }

// Watch registers wake, which is called when Done, NextAck or Aged may have changed.
// After Close(EndGoodbye) it is still called for NextAck, until the instance connects
// again. wake must not block, nor use the session.
func (s *Session) Watch(wake func()) { s.stream.Watch(wake) }

// Aged returns true once the agent should be asked to reconnect.
func (s *Session) Aged() bool { return s.aged.Load() }

// Progress returns the progress of the instance.
func (s *Session) Progress() Progress { return s.instance.Progress() }

// NextAck returns the refusals to send, each once, and the progress to ack after them.
// They belong to the instance, so some may predate the session. False: the session
// may send nothing any more, because the instance has another session, or because
// this one ended other than by EndGoodbye.
func (s *Session) NextAck() (Progress, []Refusal, bool) { return s.instance.NextAck(&s.stream) }

// UnsentRefusals returns the number of refusals that NextAck will return.
func (s *Session) UnsentRefusals() int { return s.instance.UnsentCount() }

// Close ends the session, unless it has ended. EndGoodbye removes the series at
// once. Otherwise they are retained for a reconnect until their TTL.
func (s *Session) Close(end End) {
	e := s.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.liveLocked() != s {
		s.instance.Detach(&s.stream)
		return
	}
	s.fleet.endSessionLocked(s, end)
	s.fleet.closeSeriesLocked(e, s.info.Epoch, end == EndGoodbye)
	s.fleet.publishPresenceLocked(e, time.Now())
}

// Receive passes the request with the sequence, at least 1, that came now, to handle, and
// records it as received. A sequence that is not above all received ones is a duplicate: it
// is ignored without an error. The agent's other requests, and its removal, wait
// until handle returns. Error: ErrSessionOver if the session has ended.
func (s *Session) Receive(now time.Time, sequence int64, handle func(Request)) error {
	e := s.entry
	e.requestMu.Lock()
	defer e.requestMu.Unlock()
	e.mu.Lock()
	live := e.liveLocked() == s
	if live {
		e.past.lastSeen = now.UnixNano()
	}
	e.mu.Unlock()
	if !live {
		return ErrSessionOver
	}
	if !s.instance.IsNew(sequence) {
		s.fleet.metrics.duplicates.Inc()
		return nil
	}
	order := s.order
	order.Sequence = sequence
	handle(Request{
		fleet:    s.fleet,
		entry:    e,
		session:  s,
		order:    order,
		instance: s.instance,
		now:      now,
	})
	s.instance.MarkReceived(sequence)
	return nil
}
