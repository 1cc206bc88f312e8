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
	receive(t, s, sequence, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: state, ChangedAt: at}, 0) })
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

func setNetwork(t *testing.T, s *Session, sequence int64, node uint64, age time.Duration) {
	t.Helper()
	receive(t, s, sequence, func(q Request) { q.SetNetwork(agent.Network{NodeID: node}, q.Said(age)) })
}

func setApp(t *testing.T, s *Session, sequence int64, health agent.AppHealth, age time.Duration) {
	t.Helper()
	receive(t, s, sequence, func(q Request) {
		app := nid(5001)
		require.Empty(t, q.SetAppHealth(map[agent.ID]agent.AppHealth{app: health}, map[agent.ID]int64{app: q.Said(age)}))
	})
}

func requireStates(t *testing.T, p parts, node uint64, health agent.AppHealth) {
	t.Helper()
	info, err := p.Agent(nid(1))
	require.NoError(t, err)
	require.Equal(t, node, info.State.Network.NodeID)
	require.Equal(t, health, info.State.AppHealth[nid(5001)])
}

// What an older relay could not say before does not take the place of what another one
// was told later. Its ack does not wait. What it was told later counts.
func TestStatesOfAnOlderRelay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newParts(t, Options{})
		defer running(t, p)()
		time.Sleep(time.Second)
		_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		first := connectTo(t, p, 1, relayHello(1, 1, 0))
		setNetwork(t, first, 1, 1, 0)
		setApp(t, first, 2, agent.AppHealthInitializing, 0)
		time.Sleep(2 * time.Second)
		second := connectTo(t, p, 1, relayHello(2, 1, 0))
		setNetwork(t, second, 1, 2, time.Millisecond)
		setApp(t, second, 2, agent.AppHealthHealthy, time.Millisecond)
		requireStates(t, p, 2, agent.AppHealthHealthy)
		time.Sleep(time.Second)

		again := connectTo(t, p, 1, relayHello(1, 2, first.Info().Epoch))
		setNetwork(t, again, 3, 3, 2*time.Second)
		setApp(t, again, 4, agent.AppHealthUnhealthy, 2*time.Second)
		requireStates(t, p, 2, agent.AppHealthHealthy)
		time.Sleep(time.Second)
		require.Equal(t, Progress{Received: 4, Durable: 4}, again.Progress())
		setNetwork(t, again, 5, 4, time.Second/2)
		setApp(t, again, 6, agent.AppHealthUnhealthy, time.Second/2)
		requireStates(t, p, 4, agent.AppHealthUnhealthy)
		// The relay goes on with what it could not say after a break, whatever its age.
		again = connectTo(t, p, 1, relayHello(1, 3, again.Info().Epoch))
		setNetwork(t, again, 7, 5, time.Hour)
		requireStates(t, p, 5, agent.AppHealthUnhealthy)
		// Without an age it counts as said now; of a process that dials ages mean nothing.
		third := connectTo(t, p, 1, relayHello(3, 1, 0))
		setNetwork(t, third, 1, 6, 0)
		requireStates(t, p, 6, agent.AppHealthUnhealthy)
		own := connectTo(t, p, 1, hello(4, 1))
		setNetwork(t, own, 1, 7, time.Hour)
		requireStates(t, p, 7, agent.AppHealthUnhealthy)
	})
}

// The same of a replica that has not read what is newer: it does not store over it.
func TestStatesOfAnOlderRelayOnAnotherReplica(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		first := connectTo(t, r[0], 1, relayHello(1, 1, 0))
		time.Sleep(time.Second)
		second := connectTo(t, r[1], 1, relayHello(2, 1, 0))
		awaitReplicas()
		c.setCut(true, r[0])
		setNetwork(t, second, 1, 2, 0)
		setApp(t, second, 2, agent.AppHealthHealthy, 0)
		said := time.Now()
		time.Sleep(800 * time.Millisecond) // it is written, and not read
		say := func(s *Session) {
			setNetwork(t, s, 1, 1, time.Since(said)+time.Second)
			setApp(t, s, 2, agent.AppHealthUnhealthy, time.Since(said)+time.Second)
		}
		again := connectTo(t, r[0], 1, relayHello(1, 2, first.Info().Epoch))
		say(again)
		requireStates(t, r[0], 1, agent.AppHealthUnhealthy) // it does not know of the other
		c.setCut(false, r[0])
		awaitReplicas()
		requireStates(t, r[0], 2, agent.AppHealthHealthy)
		requireStates(t, r[1], 2, agent.AppHealthHealthy)
		require.True(t, closed(again.Done()), "it must say it again")
		again = connectTo(t, r[0], 1, relayHello(1, 3, again.Info().Epoch))
		say(again)
		awaitReplicas()
		require.Equal(t, Progress{Received: 2, Durable: 2}, again.Progress())
		requireStates(t, r[0], 2, agent.AppHealthHealthy)
		requireStates(t, r[1], 2, agent.AppHealthHealthy)
	})
}

// A start that ended is known when the end comes after the shutdown.
func TestReadyAfterShutdown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newParts(t, Options{})
		defer running(t, p)()
		reg := registration(1, 1, 1)
		reg.CreatedAt, reg.Workspace.Build.CreatedAt = time.Now(), time.Now()
		time.Sleep(time.Second)
		_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{reg}})
		require.NoError(t, err)
		starting := time.Now()
		setLifecycle(t, connectTo(t, p, 1, relayHello(1, 1, 0)), 1, agent.LifecycleStarting, starting)
		time.Sleep(2 * time.Second)
		setLifecycle(t, connectTo(t, p, 1, relayHello(2, 1, 0)), 1, agent.LifecycleShuttingDown, time.Now())
		time.Sleep(time.Second)
		setLifecycle(t, connectTo(t, p, 1, relayHello(3, 1, 0)), 1, agent.LifecycleReady, starting.Add(time.Second))
		time.Sleep(time.Second)
		info, err := p.Agent(nid(1))
		require.NoError(t, err)
		require.Equal(t, agent.LifecycleShuttingDown, info.State.CurrentLifecycle())
		want := agent.Startup{StartedAt: starting, ReadyAt: starting.Add(time.Second), Result: agent.LifecycleReady}
		require.Equal(t, want, info.State.Startup)
	})
}

// What an agent reported to another replica was counted there, whichever relay sends it
// here next.
func TestReportsOfRelaysOnAnotherReplica(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		awaitReplicas()
		require.True(t, connectTo(t, r[0], 1, relayHello(1, 1, 0)).Info().First)
		awaitReplicas()
		elsewhere := connectTo(t, r[1], 1, relayHello(2, 1, 0))
		require.False(t, elsewhere.Info().First)
		reportOn(t, elsewhere, 1)
		awaitReplicas()
		require.False(t, connectTo(t, r[0], 1, relayHello(3, 1, 0)).Info().First)
		require.False(t, connectTo(t, r[0], 1, relayHello(4, 1, 0)).Info().First, "nothing was reported here since")
	})
}

// A relay in its first session has sent nothing before, whatever another one has.
func TestRelaysThatMaySendAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		_, err := r[0].Register(t.Context(), setOf(1))
		require.NoError(t, err)
		first := connectTo(t, r[0], 1, relayHello(1, 1, 0))
		reportOn(t, first, 1)
		require.False(t, first.Info().Unknown)
		require.False(t, connectTo(t, r[0], 1, relayHello(2, 1, 0)).Info().Unknown)
		require.False(t, connectTo(t, r[0], 1, relayHello(1, 2, first.Info().Epoch)).Info().Unknown)
		require.True(t, connectTo(t, r[0], 1, relayHello(3, 2, 0)).Info().Unknown)
	})
}
