package fleet

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/notification"
	"github.com/coder/agentstatsd/internal/bubble"
)

// An agent is removed and registered again on one replica before the other one, which
// has its session, reads that. The session ends, and nothing of the earlier incarnation
// is left.
func TestRemovedAndBackElsewhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		set := func() Set { return Set{Agents: []agent.Registration{registration(1, 1, 1)}} }
		_, err := r[0].Register(t.Context(), set())
		require.NoError(t, err)
		awaitReplicas()
		s := connectTo(t, r[1], 1, hello(1, 1))
		receive(t, s, 1, func(q Request) {
			q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0)
			q.MarkReported(0)
		})
		awaitReplicas()
		require.Equal(t, Progress{Received: 1, Durable: 1}, s.Progress())
		r[1].journal.take()

		_, err = r[0].Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		_, err = r[0].Register(t.Context(), set())
		require.NoError(t, err)
		awaitReplicas()
		require.True(t, closed(s.Done()))
		require.Equal(t, EndDeregistered, s.End())
		require.Contains(t, r[1].journal.take(), "pending remove 1")
		require.Equal(t, "connecting", statusOf(t, "ws1", r...), "nothing is known of it")
		require.Equal(t, 0.0, connectedIn(t, "ws1", r...))
		for _, p := range r {
			info, err := p.Agent(nid(1))
			require.NoError(t, err)
			require.Empty(t, info.State.Lifecycle)
			require.False(t, info.Connected)
		}
		// Its next session is its own, and begins with nothing.
		s = connectTo(t, r[1], 1, hello(1, 2))
		require.Equal(t, Progress{}, s.Resume())
		awaitReplicas()
		require.Equal(t, "connected", statusOf(t, "ws1", r...))
	})
}

// Who is registered again, unchanged, while a sync is under way survives it, on
// whichever replica; so do workspaces.
func TestNamedDuringASync(t *testing.T) {
	for _, by := range []int{0, 1} {
		bubble.Test(t, func(t *testing.T) {
			_, r := startReplicas(t, 2)
			set := func(n ...int) (s Set) {
				for _, i := range n {
					s.Agents = append(s.Agents, registration(i, i, 1))
				}
				return s
			}
			lonely := registration(7, 7, 1).Workspace
			all := set(1, 2, 3, 4)
			all.Workspaces = []agent.Workspace{lonely}
			_, err := r[0].Register(t.Context(), all)
			require.NoError(t, err)
			awaitReplicas()
			sync, err := r[0].BeginSync()
			require.NoError(t, err)
			again := set(1)
			again.Workspaces = []agent.Workspace{lonely}
			_, err = r[by].Register(t.Context(), again)
			require.NoError(t, err)
			done, err := sync.Apply(t.Context(), set(2, 3), false)
			require.NoError(t, err)
			require.Equal(t, 1, done.Deregistered, "registered again by replica %d", by)
			awaitReplicas()
			for _, p := range r {
				require.Equal(t, ids(1, 2, 3), registered(p.Fleet))
				require.NotNil(t, p.registry.workspaces.Get(lonely.ID))
			}
		})
	}
}

// The session and the state of an agent that came back are read before its removal is.
// They do not count as those of the earlier incarnation, and are not lost with it.
func TestReadBeforeItsRemoval(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 1)
		set := func() Set { return Set{Agents: []agent.Registration{registration(1, 1, 1)}} }
		_, err := r[0].Register(t.Context(), set())
		require.NoError(t, err)
		awaitReplicas()
		reader := newPartsOn(t, Options{}, r[0].store, &journal{})
		c.setLive(replicaID(1), true)
		reader.Join(membership{c, replicaID(1)}, membership{c, replicaID(1)})
		require.NoError(t, reader.Load(t.Context()))
		require.NoError(t, reader.follow(t.Context()))

		_, err = r[0].Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		_, err = r[0].Register(t.Context(), set())
		require.NoError(t, err)
		s := connectTo(t, r[0], 1, hello(1, 1))
		receive(t, s, 1, func(q Request) { q.SetNetwork(agent.Network{NodeID: 7}, 0) })
		awaitReplicas()
		require.NoError(t, reader.followSessions(t.Context(), math.MaxInt64))
		require.NoError(t, reader.followStates(t.Context(), math.MaxInt64))
		require.NoError(t, reader.follow(t.Context()))
		info, err := reader.Agent(nid(1))
		require.NoError(t, err)
		require.True(t, info.Connected)
		require.EqualValues(t, 7, info.State.Network.NodeID)
	})
}

// What was read of an agent that was removed and came back during the read is of the
// agent that it was before.
func TestStateReadBeforeARemoval(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		set := Set{Agents: []agent.Registration{registration(1, 1, 1)}}
		_, err := r[0].Register(t.Context(), set)
		require.NoError(t, err)
		revision, err := r[0].followRegistrations(t.Context())
		require.NoError(t, err)
		old := agent.State{Agent: nid(1)}
		old.SetLifecycle(agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: day}, agent.Order{Epoch: 1, Sequence: 1})
		_, err = r[0].Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		_, err = r[0].Register(t.Context(), set)
		require.NoError(t, err)

		_, err = r[0].store.SaveStates(t.Context(), []agent.State{old})
		require.NoError(t, err)
		saveSessions(t, r[0].store, []agent.SessionRecord{{Agent: nid(1), Epoch: 1, Replica: nid(99), Open: true}})
		require.NoError(t, r[0].followSessions(t.Context(), revision))
		require.NoError(t, r[0].followStates(t.Context(), revision))
		info, err := r[0].Agent(nid(1))
		require.NoError(t, err)
		require.Empty(t, info.State.Lifecycle)
		require.Empty(t, info.State.Startup)
		e, err := r[0].entry(nid(1))
		require.NoError(t, err)
		require.Zero(t, e.history().newest)
	})
}

// The database was replaced by an older one, which has come to the same revision: all is
// read again, states too.
func TestDatabaseReplaced(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		store := r[0].store
		store.mu.Lock()
		delete(store.regs, nid(1))
		other := registration(2, 2, 1)
		store.regs[nid(2)], store.spaces[other.Workspace.ID] = other, other.Workspace
		store.states[nid(2)] = agent.State{
			Agent: nid(2), Lifecycle: agent.Lifecycle{State: agent.LifecycleReady}, LifecycleOrder: agent.Order{Epoch: 3},
		}
		store.replaced = true
		store.mu.Unlock()
		awaitReplicas()
		_, err = r[0].Agent(nid(1))
		require.ErrorIs(t, err, ErrUnknownAgent)
		info, err := r[0].Agent(nid(2))
		require.NoError(t, err)
		require.Equal(t, agent.LifecycleReady, info.State.Lifecycle.State)
	})
}

// What is written of an agent carries the incarnation that it had when it said it.
func TestWritesCarryTheIncarnation(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		store := r[0].store
		var want []int64
		for n := range int64(2) {
			_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
			require.NoError(t, err)
			registrations, err := store.Registrations(t.Context(), 0)
			require.NoError(t, err)
			want = append(want, registrations.Agents[0].Incarnation)
			s := connectTo(t, r[0], 1, hello(byte(n)+1, 1))
			receive(t, s, 1, func(q Request) {
				require.Equal(t, want[n], q.Incarnation())
				q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0)
			})
			awaitReplicas()
			_, err = r[0].Deregister(t.Context(), ids(1), nil)
			require.NoError(t, err)
		}
		require.Equal(t, want, store.incarnations)
		require.Equal(t, want, slices.Compact(store.sessionIncarnations))
		require.NotEqual(t, want[0], want[1])
	})
}

// Notifications of a session of the agent that was there before change nothing. Those of one
// that comes after it are asked for again, once its registration is read.
func TestNotificationsOfAnotherIncarnation(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		for n := 2; n > 0; n-- {
			_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(n, n, 1)}})
			require.NoError(t, err)
		}
		awaitReplicas()
		s := connectTo(t, r[0], 1, hello(1, 1))
		e, err := r[0].entry(nid(1))
		require.NoError(t, err)
		is := e.reg.Load().Incarnation
		notify := func(incarnation int64) {
			record := agent.SessionRecord{Agent: nid(1), Incarnation: incarnation, Epoch: s.Info().Epoch + 1, Open: true}
			r[0].handleNotification(notification.Encode(notification.Sessions, replicaID(7), []agent.SessionRecord{record}))
		}
		r[0].peers.missed.Store(false)
		notify(is - 1)
		require.False(t, closed(s.Done()))
		require.False(t, r[0].peers.missed.Load())
		notify(is + 1)
		require.False(t, closed(s.Done()))
		require.True(t, r[0].peers.missed.Load())
		notify(is)
		require.True(t, closed(s.Done()))
		require.Equal(t, EndTakeover, s.End())
		require.Zero(t, e.history().newest.Incarnation)
	})
}

// A notification or a pass may look an agent up just before it is removed, and apply what it
// has after the agent came back. The series of the new incarnation stay as they are.
func TestAppliedAfterItsRemoval(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		p := r[0]
		set := func() Set { return Set{Agents: []agent.Registration{registration(1, 1, 1)}} }
		_, err := p.Register(t.Context(), set())
		require.NoError(t, err)
		old, err := p.entry(nid(1))
		require.NoError(t, err)
		_, err = p.Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		_, err = p.Register(t.Context(), set())
		require.NoError(t, err)
		awaitReplicas()
		served := p.states.all()
		require.NotEmpty(t, served)

		state := agent.State{Agent: nid(1)}
		state.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: time.Now()}, agent.Order{Epoch: 1, Sequence: 1})
		p.applyState(old, &state, time.Now())
		require.Equal(t, served, p.states.all())
		old.mu.Lock()
		p.applySessionLocked(old, agent.SessionRecord{Agent: nid(1), Epoch: 2, Replica: replicaID(1), Open: true}, time.Now())
		old.mu.Unlock()
		require.Equal(t, served, p.states.all())
	})
}
