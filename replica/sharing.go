package replica

import (
	"bytes"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// The phases of a replica, which messages and rows say:
//
//	starting --Serve--> serving --Leave--> leaving
//
// The others say of one in any phase that it is gone, until its next heartbeat.
//
// What exactly one of all may serve, but any can, is shared by those that serve. A
// replica comes to another phase when its own message is back: the others have it then.
// Without the pubsub it does when the database has it.

// Serve says that this replica has read the registrations, and takes its share.
func (r *Replicas) Serve() { r.enter(agent.ReplicaServing) }

// Leave says that this replica stops: the others take its share at once. If no other one
// serves it keeps its share.
func (r *Replicas) Leave() { r.enter(agent.ReplicaLeaving) }

func (r *Replicas) enter(phase agent.ReplicaPhase) {
	r.mu.Lock()
	rises := phase > r.phase
	r.phase = max(r.phase, phase)
	r.mu.Unlock()
	if rises {
		signal(r.announce)
		r.wakeRun()
	}
}

// Changed has an element when the result of Sharing or Member may have changed by a
// message or a heartbeat. They change with time, too.
func (r *Replicas) Changed() <-chan struct{} { return r.changed }

// Sharing returns the replicas that share what exactly one may serve, ordered by id:
// those that live and serve or, if none does, that leave. This one is among them while
// it is a member. While one lives that is of a version that does not share, it is the
// holder of the lease alone, which such a version expects. Replicas that reach the
// database or one another agree.
func (r *Replicas) Sharing() []agent.ID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := time.Now()
	var serving, leaving []agent.ID
	older := false
	add := func(id agent.ID) {
		switch r.phases[id] {
		case agent.ReplicaUnknown:
			older = true
		case agent.ReplicaStarting:
		case agent.ReplicaServing:
			serving = append(serving, id)
		default:
			leaving = append(leaving, id)
		}
	}
	if r.memberLocked() {
		add(r.self)
	}
	for id := range r.listed {
		if r.liveLocked(id, now) {
			add(id)
		}
	}
	// One that is not in the database may be of another deployment. Whether it is there is
	// not known while this replica does not reach it.
	for id := range r.messages {
		if _, listed := r.listed[id]; r.err != nil && !listed && r.liveLocked(id, now) {
			add(id)
		}
	}
	switch {
	case older:
		return r.leaderLocked()
	case len(serving) == 0:
		serving = leaving
	}
	slices.SortFunc(serving, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	return serving
}

// leaderLocked returns the holder of the lease, as far as it is known.
func (r *Replicas) leaderLocked() []agent.ID {
	switch {
	case r.leads && r.memberLocked():
		return []agent.ID{r.self}
	case r.holder == r.self || r.holder == agent.ID{}:
		return nil
	}
	return []agent.ID{r.holder}
}

// notePhasesLocked notes what a heartbeat read. It forgets replicas that are neither in
// the database nor send messages.
func (r *Replicas) notePhasesLocked(replicas []agent.Replica) {
	r.listed = make(map[agent.ID]struct{}, len(replicas))
	for _, other := range replicas {
		if other.Phase != agent.ReplicaGone { // it may be back
			r.phases[other.ID] = max(r.phases[other.ID], other.Phase)
		}
		if other.ID != r.self {
			r.listed[other.ID] = struct{}{}
		}
	}
	for id := range r.phases {
		_, listed := r.listed[id]
		if _, received := r.messages[id]; !listed && !received && id != r.self {
			delete(r.phases, id)
		}
	}
}
