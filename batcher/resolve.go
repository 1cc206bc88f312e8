package batcher

import "github.com/coder/agentstatsd/agent"

// pendingAck is one pending part of a tracker: no durable ack passes its sequence
// until it is resolved.
type pendingAck struct {
	tracker  agent.Tracker // nil: none
	sequence int64
}

// addPending notifies the tracker of the pending part.
func (a pendingAck) addPending() {
	if a.tracker != nil {
		a.tracker.AddPending(a.sequence)
	}
}

// overwrite returns the pending ack of an entry that has a when a value with next
// arrives. next is not pending yet. Of one tracker the older sequence stays
// pending. Otherwise the agent's process is a new one, for which the old one's ack
// is pointless: a is resolved.
func (a pendingAck) overwrite(next pendingAck, resolved *resolutions) pendingAck {
	if a.tracker == next.tracker && a.sequence <= next.sequence {
		return a
	}
	next.addPending()
	resolved.add(a, nil)
	return next
}

// join returns the pending ack of an entry in which an older value, with a, and a
// newer one, with next, have become one. The other of the two is resolved.
func (a pendingAck) join(next pendingAck, resolved *resolutions) pendingAck {
	if a.tracker == next.tracker && a.sequence <= next.sequence {
		resolved.add(next, nil)
		return a
	}
	resolved.add(a, nil)
	return next
}

// resolutions collects resolved acks by tracker. The zero value is empty. Its
// buffers are used again.
type resolutions struct {
	index    map[agent.Tracker]int
	trackers []agent.Tracker
	lists    [][]agent.Resolution
}

// add resolves an ack. refusal is nil unless the entry was given up.
func (s *resolutions) add(a pendingAck, refusal *agent.Refusal) {
	if a.tracker == nil {
		return
	}
	i, ok := s.index[a.tracker]
	if !ok {
		if s.index == nil {
			s.index = make(map[agent.Tracker]int)
		}
		i = len(s.trackers)
		s.index[a.tracker] = i
		s.trackers = append(s.trackers, a.tracker)
		if i == len(s.lists) {
			s.lists = append(s.lists, nil)
		}
	}
	s.lists[i] = append(s.lists[i], agent.Resolution{Sequence: a.sequence, Refusal: refusal})
}

// notifyTrackers calls each tracker once, and empties s. It must be called without
// a lock that a tracker may want.
func (s *resolutions) notifyTrackers() {
	for i, tracker := range s.trackers {
		tracker.Resolve(s.lists[i])
		clear(s.lists[i])
		s.lists[i] = s.lists[i][:0]
	}
	clear(s.index)
	clear(s.trackers)
	s.trackers = s.trackers[:0]
}
