package batcher

import "github.com/coder/agentstatsd/agent"

// hold is one pending part of a tracker that is not resolved.
type hold struct {
	tracker  agent.Tracker // nil: nobody is told
	sequence int64
}

// begin tells the tracker.
func (h hold) begin() {
	if h.tracker != nil {
		h.tracker.AddPending(h.sequence)
	}
}

// overwrite returns the hold of an entry that has h when a value arrives whose
// hold would be next, which has not begun. Of one tracker the older sequence
// stays held. Otherwise the agent's process is a new one, and what the old one
// waited for has become pointless: its hold ends.
func (h hold) overwrite(next hold, ends *settlements) hold {
	if h.tracker == next.tracker && h.sequence <= next.sequence {
		return h
	}
	next.begin()
	ends.add(h, nil)
	return next
}

// join returns the hold of an entry of which an older value, held by h, and a
// newer one, held by next, have become one; the other of the two ends.
func (h hold) join(next hold, ends *settlements) hold {
	if h.tracker == next.tracker && h.sequence <= next.sequence {
		ends.add(next, nil)
		return h
	}
	ends.add(h, nil)
	return next
}

// settlements collects the ends of holds by tracker. The zero value is empty.
// Its buffers are used again.
type settlements struct {
	index    map[agent.Tracker]int
	trackers []agent.Tracker
	settled  [][]agent.Resolution
}

// add ends a hold. refusal is nil unless the entry was given up.
func (s *settlements) add(h hold, refusal *agent.Refusal) {
	if h.tracker == nil {
		return
	}
	i, ok := s.index[h.tracker]
	if !ok {
		if s.index == nil {
			s.index = make(map[agent.Tracker]int)
		}
		i = len(s.trackers)
		s.index[h.tracker] = i
		s.trackers = append(s.trackers, h.tracker)
		if i == len(s.settled) {
			s.settled = append(s.settled, nil)
		}
	}
	s.settled[i] = append(s.settled[i], agent.Resolution{Sequence: h.sequence, Refusal: refusal})
}

// tell settles with each tracker once, and empties s. It must be called
// without a lock that a tracker may want.
func (s *settlements) tell() {
	for i, tracker := range s.trackers {
		tracker.Resolve(s.settled[i])
		clear(s.settled[i])
		s.settled[i] = s.settled[i][:0]
	}
	clear(s.index)
	clear(s.trackers)
	s.trackers = s.trackers[:0]
}
