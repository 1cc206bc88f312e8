package fleet

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// End is how a session ended.
type End string

// The ends of sessions. Those of the first group are the stream's to name, the
// others are the fleet's.
const (
	EndGoodbye    End = "goodbye"    // the agent goes away for good
	EndDisconnect End = "disconnect" // its stream ended or broke
	EndDrain      End = "drain"      // the service stops
	EndRefused    End = "refused"    // the agent broke the contract

	EndTakeover     End = "takeover"     // a newer session of the agent
	EndDeregistered End = "deregistered" // coderd removed the agent
	EndSuperseded   End = "superseded"   // the agent of a newer build took its place
	EndRevoked      End = "revoked"      // the agent has another token now
	EndAged         End = "aged"         // the agent did not follow the request to connect again
	EndOutdated     End = "outdated"     // what it said lost against what is stored
)

var allEnds = []End{
	EndGoodbye, EndDisconnect, EndDrain, EndRefused,
	EndTakeover, EndDeregistered, EndSuperseded, EndRevoked, EndAged, EndOutdated,
}

// Session is the live session of an agent.
type Session struct {
	fleet   *Fleet
	entry   *entry
	info    agent.Session
	tracker *tracker
	order   agent.Order // of its requests, without their sequence
	resume  Progress
	token   [32]byte // hash of the agent's token when the session opened

	done chan struct{}
	aged atomic.Bool
	wake atomic.Pointer[func()] // nil: nobody waits for news

	end End // written before done is closed

	// Guarded by entry.mu.
	ageAt   time.Time // zero: never
	closeAt time.Time // zero: not asked to connect again yet
}

// Hello is what an instance tells when it connects.
type Hello struct {
	Instance agent.Instance
	// Ordinal of the session in the life of the instance, from 1; 0 is taken as
	// above 1.
	Ordinal int64
	// Epoch of the instance's session before; 0: not known.
	Epoch int64
	// Durable is the highest durable sequence that the instance was told of: it
	// knows all refusals up to there.
	Durable int64
}

// Connect opens a session of the agent and ends an older one, here or on another
// replica, with EndTakeover. It waits for the database only if the agent is not
// known here. Errors: ErrUnknownAgent, ErrUnavailable.
func (f *Fleet) Connect(ctx context.Context, id agent.ID, hello Hello) (*Session, error) {
	e, err := f.lookUp(ctx, ErrUnknownAgent, func(r *roster) *entry { return r.agents[id] })
	if err != nil {
		return nil, err
	}
	e.turn.Lock()
	defer e.turn.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.availableLocked(); err != nil {
		return nil, err
	}
	now := time.Now()
	e.lastSeen = now
	if e.session != nil {
		f.endLocked(e.session, EndTakeover)
	}
	t, known := f.instanceLocked(e, hello.Instance)
	elsewhere := f.wasElsewhereLocked(e, t.ordinal, hello.Ordinal)
	t.ordinal = hello.Ordinal
	reg := e.reg.Load()
	order := f.beginLocked(e, hello.Epoch)
	t.epoch = order.Epoch
	s := &Session{
		fleet:   f,
		token:   reg.TokenHash,
		entry:   e,
		tracker: t,
		order:   order,
		info: agent.Session{
			Epoch:     order.Epoch,
			Instance:  hello.Instance,
			First:     hello.Ordinal == 1 && !known,
			Elsewhere: elsewhere,
		},
		done: make(chan struct{}),
	}
	if age := f.opts.SessionAge; age > 0 {
		s.ageAt = now.Add(age - age/10 + time.Duration(f.opts.Random()*float64(age/5)))
	}
	e.session = s
	t.detached = time.Time{}
	s.resume = t.attach(s, hello.Durable)
	f.metrics.sessions.Inc()
	f.openSeriesLocked(e, s.info)
	f.presentLocked(e, now)
	return s, nil
}

// instanceLocked returns the tracker of the instance, and whether the instance
// was known before.
func (f *Fleet) instanceLocked(e *entry, instance agent.Instance) (_ *tracker, known bool) {
	i := slices.IndexFunc(e.instances, func(t *tracker) bool { return t.instance == instance })
	if i >= 0 {
		// The newest stands last: the first one goes when there are too many.
		t := e.instances[i]
		e.instances = append(slices.Delete(e.instances, i, i+1), t)
		return t, true
	}
	if len(e.instances) >= maxInstances {
		f.metrics.instancesDropped.Inc()
		e.dropInstanceLocked(0)
	}
	t := newTracker(f, e, instance)
	e.instances = append(e.instances, t)
	return t, false
}

func (e *entry) dropInstanceLocked(i int) {
	t := e.instances[i]
	e.instances = slices.Delete(e.instances, i, i+1)
	e.holds = slices.DeleteFunc(e.holds, func(h hold) bool { return h.tracker == t })
}

// maxEpochAhead is how far an epoch that an agent tells may be ahead of the clock:
// more than clocks of replicas differ. Beyond it the agent would only harm itself.
const maxEpochAhead = time.Hour

// beginLocked returns the order for a session, which is the agent's newest from
// now on, and has it told and persisted in a while. told is the epoch that the
// agent knows of; 0: none.
func (f *Fleet) beginLocked(e *entry, told int64) agent.Order {
	now := f.opts.Now()
	last := max(e.newest.Epoch, e.stored)
	previous := e.newest.Epoch
	if told != 0 && told < now.Add(maxEpochAhead).UnixNano() {
		last, previous = max(last, told), told
	}
	e.newest = agent.SessionRecord{
		Agent:   e.id,
		Epoch:   nextEpoch(now, last, f.self()),
		Replica: f.self(),
		Open:    true,
	}
	f.recordLocked(e)
	order := agent.Order{Epoch: e.newest.Epoch}
	if f.peers != nil {
		order.Basis, order.Previous = max(e.stored, e.recorded, 1), previous
	}
	return order
}

// nextEpoch rises although the clock may not. An epoch can be below a stored one all
// the same, if this replica's clock is slow, or was set back, and it was not told of
// that. Then what the session says is not stored, and the session ends: EndOutdated.
//
// Two replicas that know of the same last epoch, and whose clocks are behind it, go
// beyond it by different steps, up to a millisecond: with the same epoch what one
// of them stores would hide what the other does, and nobody would know.
func nextEpoch(now time.Time, last int64, replica agent.ID) int64 {
	step := int64(1)
	if replica != (agent.ID{}) {
		h := fnv.New64a()
		h.Write(replica[:])
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(last)))
		step += int64(h.Sum64() % maxEpochStep)
	}
	return max(now.UnixNano(), last+step)
}

// maxEpochStep is in nanoseconds: replicas meet by chance once in a million times, and
// an agent that connects each second does not outrun the clock.
const maxEpochStep = uint64(time.Millisecond)

// endLocked ends a live session; the caller tells Series what becomes of the
// series.
func (f *Fleet) endLocked(s *Session, end End) {
	s.entry.session = nil
	f.closeRecordLocked(s.entry, s.info.Epoch)
	s.end = end
	close(s.done)
	s.news()
	s.tracker.detached = time.Now()
	if end != EndGoodbye {
		s.tracker.detach(s)
	}
	f.metrics.sessions.Dec()
	f.metrics.sessionsEnded.WithLabelValues(string(end)).Inc()
}

// Agent returns the id of the session's agent.
func (s *Session) Agent() agent.ID { return s.entry.id }

// Info returns the session's epoch and instance.
func (s *Session) Info() agent.Session { return s.info }

// Resume returns what was known of the instance when the session opened.
func (s *Session) Resume() Progress { return s.resume }

// Done is closed when the session is over, by whomever.
func (s *Session) Done() <-chan struct{} { return s.done }

// End returns how the session ended. It is valid once Done is closed.
func (s *Session) End() End { return s.end }

// Watch has wake called from now on when Done, Take or Aged may have news. After
// Close(EndGoodbye) it goes on for Take, until the instance connects again. wake
// must not block, nor use the session.
func (s *Session) Watch(wake func()) { s.wake.Store(&wake) }

// news wakes whoever watches the session.
func (s *Session) news() {
	if wake := s.wake.Load(); wake != nil {
		(*wake)()
	}
}

// Aged returns true once the agent should be asked to connect again.
func (s *Session) Aged() bool { return s.aged.Load() }

// Progress returns how far the requests of the instance have come.
func (s *Session) Progress() Progress { return s.tracker.progress() }

// Take returns the refusals that the instance is to be told, each once, and the
// progress that it may be told after them. They are of the instance: some may
// have come between its sessions. False: the session tells nothing any more, as
// it has ended, other than by goodbye, or the instance has another one.
func (s *Session) Take() (Progress, []Refusal, bool) { return s.tracker.take(s) }

// Untold returns how many refusals wait for Take.
func (s *Session) Untold() int { return s.tracker.waiting() }

// Close ends the session, unless it is over already. EndGoodbye has the series
// go at once; otherwise they wait for a reconnect until their TTL.
func (s *Session) Close(end End) {
	e := s.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.session != s {
		s.tracker.detach(s)
		return
	}
	s.fleet.endLocked(s, end)
	s.fleet.closeSeriesLocked(e, s.info.Epoch, end == EndGoodbye)
	s.fleet.presentLocked(e, time.Now())
}

// Receive has take take in the request with the sequence, which is at least 1,
// and records it as received. A sequence that is not above all received ones is
// a duplicate: it is ignored without an error. The error is ErrSessionOver if
// the session has ended. The agent's other requests, and its removal, wait
// meanwhile.
func (s *Session) Receive(sequence int64, take func(Request)) error {
	e := s.entry
	e.turn.Lock()
	defer e.turn.Unlock()
	now := time.Now()
	e.mu.Lock()
	live := e.session == s
	if live {
		e.lastSeen = now
	}
	e.mu.Unlock()
	if !live {
		return ErrSessionOver
	}
	if !s.tracker.fresh(sequence) {
		s.fleet.metrics.duplicates.Inc()
		return nil
	}
	order := s.order
	order.Sequence = sequence
	take(Request{
		fleet:   s.fleet,
		entry:   e,
		session: s.info,
		order:   order,
		tracker: s.tracker,
		now:     now,
	})
	s.tracker.receive(sequence)
	return nil
}

// scan does what is due: it asks aged sessions to leave, ends those that did
// not, forgets old instances and moves statuses.
func (f *Fleet) scan(now time.Time) {
	start := time.Now()
	defer func() { f.metrics.collection.Observe(time.Since(start).Seconds()) }()
	f.checkStanding()
	f.mu.RLock()
	order := f.roster.order
	f.mu.RUnlock()
	for _, e := range order {
		e.mu.Lock()
		f.scanLocked(e, now)
		e.mu.Unlock()
	}
}

func (f *Fleet) scanLocked(e *entry, now time.Time) {
	if s := e.session; s != nil && !s.ageAt.IsZero() && !now.Before(s.ageAt) {
		switch {
		case s.closeAt.IsZero():
			s.closeAt = now.Add(f.opts.SessionGrace)
			s.aged.Store(true)
			s.news()
		case !now.Before(s.closeAt):
			f.endLocked(s, EndAged)
			f.closeSeriesLocked(e, s.info.Epoch, false)
		}
	}
	for i := 0; i < len(e.instances); {
		t := e.instances[i]
		if t.detached.IsZero() || now.Sub(t.detached) < f.opts.InstanceRetention {
			i++
			continue
		}
		e.dropInstanceLocked(i)
	}
	if e.gone || e.leaving {
		return
	}
	if f.peers != nil && !f.peers.member.Load() && e.session == nil {
		f.letGoLocked(e)
	}
	if f.standingLocked(e, now) != (standing{e.status, e.counted, e.shown}) {
		f.presentLocked(e, now)
	}
}
