package batcher

import (
	"cmp"
	"hash/maphash"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// confirmTime is how long the ack of an unchanged value waits at least. A replica learns
// within 2 s that an agent has a session elsewhere, whose value may replace the stored one, or
// was removed, with what is stored. It ends its own session then, whose acks are not sent any
// more. If it learns later, the ack waits for that: see Followed.
const confirmTime = 3 * time.Second

// stored has what the database has of the newest sessions of agents. A value that a session
// reports again unchanged need not be written, nor read. The first write of a session is in
// any case: an older session's late row must lose against it.
//
// A value is known until it would be written again for its time. So what nobody reports
// any more is forgotten by generation. It is not safe for concurrent use.
type stored struct {
	// touch is the time after which an unchanged value is written; 0: at once.
	touch time.Duration
	seed  maphash.Seed
	// newest and before are the two generations, which began at since.
	newest, before generation
	since          time.Time
	// unconfirmed are the acks of unchanged values, the oldest first.
	unconfirmed []unconfirmedAck
	// followed is up to when is known what other replicas wrote; zero: there are none.
	followed time.Time
}

// generation has the agents whose values were written during one.
type generation struct {
	agents map[agent.ID]*storedAgent
	values int
}

// storedAgent has the values that one session wrote, by the hash of their key.
type storedAgent struct {
	epoch, incarnation int64
	values             []storedValue
}

// storedValue has hashes of 64 bits. So of 10^9 pairs of values of one key one is taken for
// unchanged with a probability of 10^-10, until its next write.
type storedValue struct {
	key, value uint64
	// collected is when the stored value was, in nanoseconds since 1970.
	collected int64
}

type unconfirmedAck struct {
	since time.Time
	ack   pendingAck
}

func newStored() stored {
	return stored{seed: maphash.MakeSeed(), newest: newGeneration(), before: newGeneration()}
}

func newGeneration() generation { return generation{agents: make(map[agent.ID]*storedAgent)} }

// values returns how many are known.
func (s *stored) values() int { return s.newest.values + s.before.values }

// has reports whether the database has the entry of r, and need not write its time.
func (s *stored) has(now time.Time, r *agent.MetadataReport, in *agent.MetadataEntry) bool {
	if s.touch == 0 || in.Said != 0 {
		return false
	}
	a := s.of(r.Agent)
	if a == nil || a.epoch != r.Order.Epoch || a.incarnation != r.Incarnation {
		return false
	}
	i, known := a.find(maphash.String(s.seed, in.Key))
	return known && a.values[i].value == s.hash(in.Value, in.Error) && now.UnixNano()-a.values[i].collected < int64(s.touch)
}

// confirmLater has the ack of a report with unchanged values wait.
func (s *stored) confirmLater(now time.Time, ack pendingAck) {
	ack.addPending()
	s.unconfirmed = append(s.unconfirmed, unconfirmedAck{now, ack})
}

// confirmKnown resolves the acks of values that are known to be stored.
func (s *stored) confirmKnown(now time.Time, resolved *resolutions) {
	since := now.Add(-confirmTime)
	if !s.followed.IsZero() && s.followed.Before(since) {
		since = s.followed
	}
	s.confirm(since, resolved)
}

// confirm resolves the acks that wait since then or before.
func (s *stored) confirm(since time.Time, resolved *resolutions) {
	n := 0
	for ; n < len(s.unconfirmed) && !s.unconfirmed[n].since.After(since); n++ {
		resolved.add(s.unconfirmed[n].ack, nil)
	}
	s.unconfirmed = slices.Delete(s.unconfirmed, 0, n)
}

// note notes a row that the database has. Of one that another session said, or could not
// say before, it notes that it does not know. No more than limit values are known.
func (s *stored) note(now time.Time, m *agent.Metadata, limit int) {
	if s.touch == 0 {
		return
	}
	s.turn(now)
	a := s.of(m.Agent)
	if a != nil && (a.epoch != m.Order.Epoch || a.incarnation != m.Incarnation) {
		s.forget(m.Agent)
		a = nil
	}
	key := maphash.String(s.seed, m.Key)
	if m.Late {
		if a != nil {
			s.remove(a, m.Agent, key)
		}
		return
	}
	if s.newest.agents[m.Agent] == nil {
		if a == nil {
			a = &storedAgent{epoch: m.Order.Epoch, incarnation: m.Incarnation}
		} else {
			s.drop(&s.before, m.Agent)
		}
		s.newest.agents[m.Agent] = a
		s.newest.values += len(a.values)
	}
	v := storedValue{key, s.hash(m.Value, m.Error), m.CollectedAt.UnixNano()}
	i, known := a.find(key)
	switch {
	case known && a.values[i].value == v.value && v.collected-a.values[i].collected < int64(s.touch):
		// The database has left it out.
	case known:
		a.values[i] = v
	case s.values() < limit:
		a.values = slices.Insert(a.values, i, v)
		s.newest.values++
	}
}

// turn begins a generation if the newest one is older than what it has lasts.
func (s *stored) turn(now time.Time) {
	if now.Sub(s.since) <= 2*s.touch {
		return
	}
	s.before, s.newest, s.since = s.newest, newGeneration(), now
}

// forget forgets an agent, forgetAll all of them.
func (s *stored) forget(id agent.ID) {
	s.drop(&s.newest, id)
	s.drop(&s.before, id)
}

func (s *stored) forgetAll() { s.newest, s.before = newGeneration(), newGeneration() }

func (s *stored) drop(g *generation, id agent.ID) {
	if a := g.agents[id]; a != nil {
		g.values -= len(a.values)
		delete(g.agents, id)
	}
}

// remove forgets one value of an agent.
func (s *stored) remove(a *storedAgent, id agent.ID, key uint64) {
	i, known := a.find(key)
	if !known {
		return
	}
	a.values = slices.Delete(a.values, i, i+1)
	if s.newest.agents[id] == a {
		s.newest.values--
	} else {
		s.before.values--
	}
}

// of returns what is known of an agent; nil: nothing.
func (s *stored) of(id agent.ID) *storedAgent {
	return cmp.Or(s.newest.agents[id], s.before.agents[id])
}

func (s *stored) hash(value, err string) uint64 {
	return maphash.Comparable(s.seed, [2]string{value, err})
}

// find returns the place of a key, and whether it has a value.
func (a *storedAgent) find(key uint64) (int, bool) {
	return slices.BinarySearchFunc(a.values, key, func(v storedValue, key uint64) int { return cmp.Compare(v.key, key) })
}
