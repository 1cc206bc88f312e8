package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// joined returns a replica that has loaded and does nothing by itself.
func joined(t *testing.T, c *cluster, store *memStore, n int, opts Options) parts {
	t.Helper()
	c.setLive(replicaID(n), true)
	p := newPartsOn(t, opts, store, &journal{})
	p.Join(membership{c, replicaID(n)}, membership{c, replicaID(n)})
	require.NoError(t, p.Load(t.Context()))
	return p
}

// What a process said waits on a replica with a fast clock, which cannot write it. The
// process ends, and the next one connects to another replica, has a lower epoch, and
// its values are acked. What is written late does not take their place: it is not
// acked, and the replica forgets it.
func TestWhatIsStoredFirstStays(t *testing.T) {
	for name, live := range map[string]bool{"ended": false, "live": true} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster()
				store := newMemStore(&journal{})
				slow := joined(t, c, store, 1, Options{})
				_, err := slow.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
				require.NoError(t, err)
				fast := joined(t, c, store, 0, Options{Now: func() time.Time { return time.Now().Add(time.Hour / 2) }})
				say := func(s *Session, sequence int64, state agent.LifecycleState) {
					receive(t, s, sequence, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: state}, 0) })
				}
				state := func(p parts) agent.LifecycleState {
					info, err := p.Agent(nid(1))
					require.NoError(t, err)
					return info.State.Lifecycle.State
				}
				before := connectTo(t, fast, 1, hello(1, 1))
				say(before, 1, agent.LifecycleReady)
				if !live {
					before.Close(EndDisconnect)
				}
				s := connectTo(t, slow, 1, hello(2, 1))
				require.Less(t, s.Info().Epoch, before.Info().Epoch)
				say(s, 1, agent.LifecycleShuttingDown)
				require.NoError(t, slow.write(t.Context()))
				require.Equal(t, Progress{Received: 1, Durable: 1}, s.Progress(), "it is acked")

				require.NoError(t, fast.write(t.Context()))
				require.Equal(t, agent.LifecycleShuttingDown, store.state(nid(1)).Lifecycle.State)
				require.Equal(t, Progress{Received: 1, Durable: 0}, before.Progress(), "it is not acked")
				require.NoError(t, fast.follow(t.Context()))
				require.Equal(t, agent.LifecycleShuttingDown, state(fast))
				if live {
					require.True(t, closed(before.Done()))
					require.Equal(t, EndOutdated, before.End())
				}

				// Whoever comes back to the one knows what is stored, and has the newer epoch.
				again := connectTo(t, fast, 1, hello(1, 2))
				require.Equal(t, Progress{}, again.Resume(), "nothing is known of the instance")
				time.Sleep(time.Millisecond)
				say(again, 1, agent.LifecycleReady)
				require.NoError(t, fast.write(t.Context()))
				require.Equal(t, Progress{Received: 1, Durable: 1}, again.Progress())
				require.Equal(t, agent.LifecycleReady, store.state(nid(1)).Lifecycle.State)
				require.NoError(t, slow.follow(t.Context()))
				require.Equal(t, agent.LifecycleReady, state(slow))
			})
		})
	}
}

// A session knows the stored session when it opens, and the one before it. It knows
// none in between, and no earlier one that was not stored.
func TestWhatSessionsKnow(t *testing.T) {
	c := newCluster()
	store := newMemStore(&journal{})
	p := joined(t, c, store, 0, Options{})
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	e, err := p.entry(nid(1))
	require.NoError(t, err)
	ordinal := int64(0)
	begin := func(epoch int64) agent.Order {
		t.Helper()
		ordinal++
		s := connectTo(t, p, 1, Hello{Instance: instanceID(1), Ordinal: ordinal, Epoch: epoch})
		var order agent.Order
		receive(t, s, ordinal, func(q Request) { order = q.Order() })
		require.Equal(t, ordinal, order.Sequence)
		require.Equal(t, s.Info().Epoch, order.Epoch)
		return order
	}
	knows := func(order agent.Order, basis, previous int64) {
		t.Helper()
		require.Equal(t, [2]int64{basis, previous}, [2]int64{order.Basis, order.Previous})
	}
	first := begin(0)
	knows(first, 1, 0)
	second := begin(0)
	knows(second, 1, first.Epoch)
	third := begin(first.Epoch)
	knows(third, 1, first.Epoch) // the agent knows
	fourth := begin(time.Now().Add(2 * time.Hour).UnixNano())
	knows(fourth, 1, third.Epoch) // its epoch is nonsense

	require.NoError(t, p.write(t.Context())) // the session's record
	fifth := begin(fourth.Epoch)
	knows(fifth, fourth.Epoch, fourth.Epoch)

	elsewhere := agent.SessionRecord{Agent: nid(1), Epoch: fifth.Epoch + 10, Replica: replicaID(7)}
	require.True(t, p.applySessions([]agent.SessionRecord{elsewhere}, e.reg.Load().Incarnation)) // a notification
	sixth := begin(0)
	knows(sixth, fourth.Epoch, elsewhere.Epoch)
	elsewhere.Epoch = sixth.Epoch + 10
	saveSessions(t, store, []agent.SessionRecord{elsewhere})
	require.NoError(t, p.follow(t.Context()))
	knows(begin(sixth.Epoch), elsewhere.Epoch, sixth.Epoch)

	loaded := joined(t, c, store, 1, Options{})
	p = loaded
	knows(begin(0), elsewhere.Epoch, elsewhere.Epoch)
	receive(t, connectTo(t, p, 1, hello(1, 100)), 100, func(q Request) {
		q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0)
	})
	require.NoError(t, p.writeStates(t.Context()))
	stored := store.state(nid(1)).LifecycleOrder.Epoch
	ordinal = 100
	knows(begin(0), elsewhere.Epoch, stored) // its record is not stored
}

// A fleet that is alone shares its agents with nobody.
func TestWhatSessionsKnowAlone(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	for n := range int64(2) {
		receive(t, connectTo(t, p, 1, hello(1, n+1)), n+1, func(q Request) {
			require.Equal(t, agent.Order{Epoch: q.Epoch(), Sequence: n + 1}, q.Order())
		})
	}
}
