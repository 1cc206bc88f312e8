package shares

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Replicas is the membership of this replica. The methods touch memory only.
// *replica.Replicas implements it.
type Replicas interface {
	Self() agent.ID
	// Member returns whether the others consider this replica alive.
	Member() bool
	// Serve says that this replica has read the registrations. From then on it may be one of
	// those that share.
	Serve()
	// Sharing returns those that share, ordered by id, this one only while it is a member.
	// All replicas agree but for a moment.
	Sharing() []agent.ID
	// Changed has an element when Sharing or Member may have changed. They change with
	// time, too.
	Changed() <-chan struct{}
}

// refreshInterval bounds the delay of what changes with time. The lease of a replica is
// longer.
const refreshInterval = time.Second

// Follower has the newest known shares. Its methods are safe for concurrent use, but for
// Refresh and Run.
type Follower struct {
	replicas Replicas
	publish  func(moves func(owner, workspace string) bool)
	member   atomic.Bool
	shares   atomic.Pointer[Shares]
}

// NewFollower returns a follower of nothing yet, which calls publish after each change.
// moves returns whether the share of workspaces with these labels came or went by it.
// What changes meanwhile is decided by the new shares.
func NewFollower(r Replicas, publish func(moves func(owner, workspace string) bool)) *Follower {
	f := &Follower{replicas: r, publish: publish}
	f.shares.Store(New(r.Self(), nil))
	return f
}

// Member returns whether this replica is a member, as of the last refresh.
func (f *Follower) Member() bool { return f.member.Load() }

// Has returns whether this replica serves the workspaces with these labels.
func (f *Follower) Has(owner, workspace string) bool { return f.shares.Load().Has(owner, workspace) }

// Run says that this replica serves. It follows the replicas until ctx is cancelled. Then
// this one has no share, and is no member.
func (f *Follower) Run(ctx context.Context) {
	ticker := time.NewTicker(refreshInterval)
	defer ticker.Stop()
	f.replicas.Serve()
	for {
		select {
		case <-ctx.Done():
			f.change(false, nil)
			return
		case <-f.replicas.Changed():
		case <-ticker.C:
		}
		f.Refresh()
	}
}

// Refresh follows what has changed since the last time.
func (f *Follower) Refresh() { f.change(f.replicas.Member(), f.replicas.Sharing()) }

func (f *Follower) change(member bool, sharing []agent.ID) {
	before := f.shares.Load()
	was := f.member.Swap(member)
	if was == member && before.Of(sharing) {
		return
	}
	after := New(f.replicas.Self(), sharing)
	f.shares.Store(after)
	f.publish(func(owner, workspace string) bool {
		// Whether it is a member decides on its sessions, too.
		return was != member || before.Has(owner, workspace) != after.Has(owner, workspace)
	})
}
