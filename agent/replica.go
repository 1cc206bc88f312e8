package agent

import (
	"bytes"
	"cmp"
	"errors"
	"time"
)

// Errors of a store that several replicas of this service share.
var (
	// ErrOutdated is wrapped when a change was decided on what is not the newest
	// any more: another replica changed it meanwhile. Nothing was written. The
	// caller reads what is new and decides again.
	ErrOutdated = errors.New("changed meanwhile by another replica")
	// ErrStoreDown is wrapped when the database itself says that nobody can use
	// it: it refuses connections, starts or stops. Then no other replica can use
	// it either. After a timeout that is not known.
	ErrStoreDown = errors.New("the database is down")
)

// ReplicaPhase is where a replica is in its life. It only rises, but for ReplicaGone: of two
// that are known of a replica the higher one is newer.
type ReplicaPhase int

// The phases of a replica.
const (
	ReplicaUnknown  ReplicaPhase = iota // it is of a version that does not say
	ReplicaStarting                     // it has not read the registrations
	ReplicaServing                      // it takes its share of what is not connected
	ReplicaLeaving                      // it stops, and leaves its share to the others
	// ReplicaGone is what others say of a replica whose last heartbeat is a lease's duration
	// ago, and of which they get no message. With its next heartbeat it has its own phase
	// again. It is the lowest, so that who does not know of it keeps what was known before.
	ReplicaGone ReplicaPhase = -1
)

// Replica is one process of this service, as the others know it.
type Replica struct {
	// ID is chosen at random by each process.
	ID ID
	// Name is for people: the name of the host.
	Name string
	// Heartbeats counts up while the replica is alive.
	Heartbeats int64
	// Load of the replica at its last heartbeat.
	Load Load
	// Config is what it has of what all replicas should have alike, as it said with its last
	// heartbeat; empty: it did not.
	Config string
	// Phase of the replica at its last heartbeat.
	Phase ReplicaPhase
}

// SavedStatus is what a replica said last of itself.
type SavedStatus struct {
	Replica ID
	// Age is how long ago it was said, by the clock of the database.
	Age time.Duration
	// Status is encoded; nil: it is above the limit of bytes that the caller gave.
	Status []byte
}

// Load is how busy a replica is, and its database as the replica sees it. Each value is
// a mean of half a minute, divided by its target. It is finite and at least 0. Above 1
// it exceeds the target.
type Load struct {
	// CPU of the process.
	CPU float64
	// PendingAge is for how long metadata waits for the database.
	PendingAge float64
	// Flush is how much of the time metadata is being written.
	Flush float64
}

// ServiceLoad has the loads of all replicas, and the factor that was decided on them.
type ServiceLoad struct {
	// Replicas that are alive, in no order.
	Replicas []Replica
	// IntervalFactor is at least 1; 0: it is not known yet.
	IntervalFactor float64
	// Decides is true for the replica that decides.
	Decides bool
}

// Lease says which replica serves what exactly one may serve.
type Lease struct {
	// Holder is zero while nobody has it.
	Holder ID
	// Heartbeats counts up while the holder is alive, and with each new holder.
	Heartbeats int64
	// IntervalFactor is what the intervals of agents are multiplied by, as the newest
	// holder decided; 1 at first.
	IntervalFactor float64
}

// SessionRecord is the newest session of an agent, as replicas share it. A record
// with a higher Epoch is newer; of equal ones that with the higher Replica.
type SessionRecord struct {
	Agent ID
	// Incarnation is as in Metadata.
	Incarnation int64
	Epoch       int64
	// Replica has, or had, the session.
	Replica ID
	// Open is true until the session ended.
	Open bool
	// Reported is true once the session had a report of stats. From then on its
	// replica publishes the agent's series.
	Reported bool
	// Relayed is as in Session.
	Relayed bool
}

// Compare returns 1 if r is newer than other, 0 if they are of the same session, otherwise -1.
func (r *SessionRecord) Compare(other *SessionRecord) int {
	return cmp.Or(cmp.Compare(r.Epoch, other.Epoch), bytes.Compare(r.Replica[:], other.Replica[:]))
}

// Registrations are the registrations in a store, or their changes, as of one
// revision.
type Registrations struct {
	// Revision rises with each change.
	Revision int64
	// Complete means that Agents and Workspaces are all that are registered.
	// Otherwise they are those that changed since the revision that was asked for,
	// and the removed ones are listed below.
	Complete bool
	// Agents and Workspaces are in the order of their ids. Each agent has the
	// current version of its workspace.
	Agents     []Registration
	Workspaces []Workspace

	RemovedAgents, RemovedWorkspaces []ID

	// NamedAgents and NamedWorkspaces were named again since and did not change.
	// They may be removed. If Complete, all are named.
	NamedAgents, NamedWorkspaces []ID
}

// Removal is the removal of an agent, or of a workspace.
type Removal struct {
	ID          ID
	IsWorkspace bool
	// Age is how long ago it was.
	Age time.Duration
}
