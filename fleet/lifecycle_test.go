package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// relayHello is the hello of relay n. epoch is that of its session before; 0: none.
func relayHello(n byte, ordinal, epoch int64) Hello {
	return Hello{Instance: instanceID(n), Ordinal: ordinal, Epoch: epoch, Relayed: true}
}

func setLifecycle(t *testing.T, s *Session, sequence int64, state agent.LifecycleState, at time.Time) {
	t.Helper()
	receive(t, s, sequence, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: state, ChangedAt: at}) })
}

func lifecycleOf(t *testing.T, p parts) agent.LifecycleState {
	t.Helper()
	info, err := p.Agent(nid(1))
	require.NoError(t, err)
	return info.State.CurrentLifecycle()
}

// What an older relay repeats, or says late, does not take the place of what was
// reached later. Its ack does not wait. What the agent reaches then counts.
func TestLifecycleOfAnOlderRelay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newParts(t, Options{})
		defer running(t, p)()
		reg := registration(1, 1, 1)
		reg.CreatedAt, reg.Workspace.Build.CreatedAt = time.Now(), time.Now()
		time.Sleep(time.Second)
		_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{reg}})
		require.NoError(t, err)
		starting := time.Now()
		first := connectTo(t, p, 1, relayHello(1, 1, 0))
		setLifecycle(t, first, 1, agent.LifecycleStarting, starting)
		time.Sleep(time.Second)
		ready := time.Now()
		second := connectTo(t, p, 1, relayHello(2, 1, 0))
		setLifecycle(t, second, 1, agent.LifecycleReady, ready)
		time.Sleep(time.Second)

		again := connectTo(t, p, 1, relayHello(1, 2, first.Info().Epoch))
		setLifecycle(t, again, 2, agent.LifecycleStarting, starting)
		require.Equal(t, agent.LifecycleReady, lifecycleOf(t, p), "repeated")
		time.Sleep(time.Second)
		require.Equal(t, Progress{Received: 2, Durable: 2}, again.Progress())
		late := connectTo(t, p, 1, relayHello(3, 1, 0))
		setLifecycle(t, late, 1, agent.LifecycleStartTimeout, starting.Add(time.Millisecond))
		require.Equal(t, agent.LifecycleReady, lifecycleOf(t, p), "said late")

		// A later one of the session, though the agent's clock was set back.
		setLifecycle(t, late, 2, agent.LifecycleShuttingDown, starting)
		require.Equal(t, agent.LifecycleShuttingDown, lifecycleOf(t, p))
		// The relay that said the newest goes on with it after a break.
		late = connectTo(t, p, 1, relayHello(3, 2, late.Info().Epoch))
		setLifecycle(t, late, 3, agent.LifecycleOff, starting)
		require.Equal(t, agent.LifecycleOff, lifecycleOf(t, p))
		// A new process of the agent, which dials, repeats nothing.
		own := connectTo(t, p, 1, hello(4, 1))
		setLifecycle(t, own, 1, agent.LifecycleStarting, starting.Add(-time.Millisecond))
		require.Equal(t, agent.LifecycleStarting, lifecycleOf(t, p))
	})
}

// A replica that has not read the newest lifecycle yet does not store an older one over
// it, although its session has the higher epoch.
func TestLifecycleOfAnOlderRelayOnAnotherReplica(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		starting := time.Now()
		time.Sleep(time.Second)
		first := connectTo(t, r[0], 1, relayHello(1, 1, 0))
		time.Sleep(time.Second)
		ready := time.Now()
		second := connectTo(t, r[1], 1, relayHello(2, 1, 0))
		awaitReplicas()
		c.setCut(true, r[0])
		setLifecycle(t, second, 1, agent.LifecycleReady, ready)
		time.Sleep(800 * time.Millisecond) // it is written, and not read
		again := connectTo(t, r[0], 1, relayHello(1, 2, first.Info().Epoch))
		setLifecycle(t, again, 1, agent.LifecycleStarting, starting)
		require.Equal(t, agent.LifecycleStarting, lifecycleOf(t, r[0]), "it does not know of the other")
		c.setCut(false, r[0])
		awaitReplicas()
		require.Equal(t, agent.LifecycleReady, lifecycleOf(t, r[0]))
		require.Equal(t, agent.LifecycleReady, lifecycleOf(t, r[1]))
		require.True(t, closed(again.Done()), "it must say it again")
		again = connectTo(t, r[0], 1, relayHello(1, 3, again.Info().Epoch))
		setLifecycle(t, again, 1, agent.LifecycleStarting, starting)
		awaitReplicas()
		require.Equal(t, Progress{Received: 1, Durable: 1}, again.Progress())
		require.Equal(t, agent.LifecycleReady, lifecycleOf(t, r[0]))
		require.Equal(t, agent.LifecycleReady, lifecycleOf(t, r[1]))
	})
}

// A relay's counters were counted by the agent's process: they count in full only if the
// agent never had a session. A report is older than what another relay sent if it was
// made before.
func TestReportsOfRelays(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{}, registration(1, 1, 1), registration(2, 2, 2))
		first := connectTo(t, p, 1, relayHello(1, 1, 0))
		require.True(t, first.Info().First)
		require.True(t, first.Info().Relayed)
		receive(t, first, 1, func(q Request) {
			require.False(t, q.IsOlderReport(time.Minute), "there is none")
			q.MarkReported(0)
		})
		time.Sleep(time.Second)
		second := connectTo(t, p, 1, relayHello(2, 1, 0))
		require.False(t, second.Info().First)
		receive(t, second, 1, func(q Request) {
			require.False(t, q.IsOlderReport(0))
			require.True(t, q.IsOlderReport(2*time.Second))
			require.False(t, q.IsOlderReport(time.Second/2))
			q.MarkReported(time.Second / 2)
			require.False(t, q.IsOlderReport(time.Minute), "its own are in order")
		})
		require.True(t, connectTo(t, p, 2, hello(1, 1)).Info().First)
		require.True(t, connectTo(t, p, 2, hello(2, 1)).Info().First, "a process that dials begins anew")
	})
}
