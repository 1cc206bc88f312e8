package fleet

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// running starts Run and returns how to stop it.
func running(t *testing.T, p parts) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func connect(t testing.TB, p parts, n int) *Session {
	t.Helper()
	s, err := p.Connect(t.Context(), nid(n), Hello{Instance: instanceID(byte(n)), Ordinal: 1})
	require.NoError(t, err)
	return s
}

// request has agent n connect and send one request.
func request(t testing.TB, p parts, n int, take func(Request)) {
	t.Helper()
	s := connect(t, p, n)
	receive(t, s, s.Resume().Received+1, take)
}

func receive(t testing.TB, s *Session, seq int64, take func(Request)) {
	t.Helper()
	require.NoError(t, s.Receive(time.Now(), seq, take))
}

// Whoever notes what agents are refused asks for each request: the state is not copied.
func TestRegistrationIsNotCopied(t *testing.T) {
	reg := registration(1, 1, 1)
	reg.Apps = []agent.App{{ID: nid(501), Slug: "a"}}
	p := loaded(t, Options{}, reg)
	request(t, p, 1, func(r Request) {
		require.Empty(t, r.SetAppHealth(map[agent.ID]agent.AppHealth{nid(501): agent.AppHealthHealthy}, nil))
	})
	require.Equal(t, nid(1), p.Registration(nid(1)).ID)
	require.Nil(t, p.Registration(nid(2)))
	require.Zero(t, testing.AllocsPerRun(10, func() { p.Registration(nid(1)) }))
}

func TestStateIsStoredBeforeItIsDurable(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{}, registration(1, 1, 1))
		defer running(t, p)()
		synctest.Wait() // what was said before Run is written
		s := connect(t, p, 1)
		now := time.Now()
		receive(t, s, 1, func(r Request) {
			r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleStarting}, 0)
		})
		i, err := p.Agent(nid(1))
		require.NoError(t, err)
		require.Equal(t, now, i.State.Lifecycle.ChangedAt, "no time is taken as the time of receipt")
		receive(t, s, 2, func(r Request) {
			r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: day.Add(time.Hour)}, 0)
		})
		receive(t, s, 3, func(r Request) {
			require.Empty(t, r.SetAppHealth(map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthHealthy}, nil))
		})
		receive(t, s, 4, func(r Request) {
			r.SetNetwork(agent.Network{NodeID: 7, Regions: []agent.Region{{ID: 1, Name: "x"}}}, 0)
		})
		receive(t, s, 5, func(Request) {})
		require.Equal(t, Progress{Received: 5, Durable: 0}, s.Progress())

		woken := notified(s)
		<-woken
		require.Equal(t, Progress{Received: 5, Durable: 5}, s.Progress())
		said := func(seq int64) agent.Order {
			return agent.Order{Epoch: s.Info().Epoch, Sequence: seq, Said: now.UnixNano()}
		}
		want := agent.State{
			Agent:          nid(1),
			Lifecycle:      agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: day.Add(time.Hour)},
			LifecycleOrder: said(2),
			Startup:        agent.Startup{StartedAt: now, ReadyAt: day.Add(time.Hour), Result: agent.LifecycleReady},
			StartedOrder:   said(1),
			ReadyOrder:     said(2),
			AppHealth:      map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthHealthy},
			AppHealthOrder: map[agent.ID]agent.Order{nid(5001): said(3)},
			Network:        agent.Network{NodeID: 7, Regions: []agent.Region{{ID: 1, Name: "x"}}},
			NetworkOrder:   said(4),
		}
		require.Equal(t, want, p.store.state(nid(1)))
		i, err = p.Agent(nid(1))
		require.NoError(t, err)
		require.Equal(t, want, i.State)
		require.True(t, i.Connected)
		require.Equal(t, now, i.LastSeen)
	})
}

func TestUnknownAppsAreRefusedByName(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s := connect(t, p, 1)
	receive(t, s, 1, func(r Request) {
		require.Equal(t, []agent.Refusal{{
			Kind: agent.RefusedInvalid, Reason: "unknown_app", Count: 2,
			Message: "app_health.updates.id: want one of the 1 apps of the agent's registration",
			Names:   []string{nid(7).String(), nid(8).String()},
		}}, r.SetAppHealth(map[agent.ID]agent.AppHealth{
			nid(8): agent.AppHealthHealthy, nid(5001): agent.AppHealthUnhealthy, nid(7): agent.AppHealthHealthy,
		}, nil))
	})
	i, err := p.Agent(nid(1))
	require.NoError(t, err)
	require.Equal(t, map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthUnhealthy}, i.State.AppHealth)
	receive(t, s, 2, func(r Request) {
		require.Len(t, r.SetAppHealth(map[agent.ID]agent.AppHealth{nid(8): agent.AppHealthHealthy}, nil), 1)
	})
	require.Equal(t, Progress{Received: 2, Durable: 0}, s.Progress(), "what was refused wholly is not waited for")
	require.Len(t, s.entry.active.state.pendingAcks, 1)
}

func TestStateWaitsForTheDatabase(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{}, registration(1, 1, 1), registration(2, 2, 1))
		p.store.fail(errDown)
		stop := running(t, p)
		s := connect(t, p, 1)
		for seq := range int64(50) {
			receive(t, s, seq+1, func(r Request) { r.SetNetwork(agent.Network{NodeID: uint64(seq)}, 0) })
			time.Sleep(time.Second)
		}
		require.Equal(t, Progress{Received: 50, Durable: 0}, s.Progress())
		require.Len(t, s.entry.active.state.pendingAcks, 1, "what waits is bounded")
		require.ErrorIs(t, p.Healthy(), errDown)
		require.ErrorContains(t, p.Healthy(), "states and sessions of agents are not stored: ")
		require.NoError(t, p.Ready(), "agents are served")
		require.Equal(t, []string{"1"}, metric(t, p, "agentstatsd_states_pending"))

		woken := notified(s)
		p.store.fail(nil)
		<-woken
		synctest.Wait()
		require.Equal(t, Progress{Received: 50, Durable: 50}, s.Progress())
		require.Equal(t, uint64(49), p.store.state(nid(1)).Network.NodeID)
		require.NoError(t, p.Healthy())
		require.Equal(t, s.Info().Epoch, p.store.epoch(nid(1)))
		stop()
	})
}

// TestStateChangesWhileItIsWritten shows that a write resolves only what it wrote.
func TestStateChangesWhileItIsWritten(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s := connect(t, p, 1)
	receive(t, s, 1, func(r Request) { r.SetNetwork(agent.Network{NodeID: 1}, 0) })
	once := false
	p.store.before = func() {
		if once {
			return
		}
		once = true
		receive(t, s, 2, func(r Request) { r.SetNetwork(agent.Network{NodeID: 2}, 0) })
	}
	batch := func() (w []stateWrite) {
		for _, e := range p.queue.DrainStates(10) {
			one, ok := e.drainState()
			require.True(t, ok)
			w = append(w, one)
		}
		return w
	}
	require.NoError(t, p.saveStates(t.Context(), batch()))
	require.Equal(t, Progress{Received: 2, Durable: 1}, s.Progress())
	require.Equal(t, uint64(1), p.store.state(nid(1)).Network.NodeID)
	require.NoError(t, p.write(t.Context()))
	require.Equal(t, Progress{Received: 2, Durable: 2}, s.Progress())

	// The same when the write fails: both wait.
	receive(t, s, 3, func(r Request) { r.SetNetwork(agent.Network{NodeID: 3}, 0) })
	once = false
	p.store.before = func() {
		if !once {
			once = true
			receive(t, s, 4, func(r Request) { r.SetNetwork(agent.Network{NodeID: 4}, 0) })
		}
	}
	p.store.fail(errDown)
	require.ErrorIs(t, p.write(t.Context()), errDown)
	require.Equal(t, Progress{Received: 4, Durable: 2}, s.Progress())
	require.Len(t, s.entry.active.state.pendingAcks, 1)
	p.store.fail(nil)
	require.NoError(t, p.write(t.Context()))
	require.Equal(t, Progress{Received: 4, Durable: 4}, s.Progress())
	require.Equal(t, uint64(4), p.store.state(nid(1)).Network.NodeID)
}

func TestRejectedStateIsIsolated(t *testing.T) {
	var regs []agent.Registration
	for n := 1; n <= 9; n++ {
		regs = append(regs, registration(n, n, 1))
	}
	p := loaded(t, Options{}, regs...)
	p.store.reject = nid(5)
	sessions := map[int]*Session{}
	for n := 1; n <= 9; n++ {
		sessions[n] = connect(t, p, n)
		receive(t, sessions[n], 1, func(r Request) { r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
	}
	require.NoError(t, p.write(t.Context()))
	require.Equal(t, Progress{Received: 1, Durable: 0}, sessions[5].Progress(), "the refusal is not sent")
	_, refusals, _ := sessions[5].NextAck()
	for n := 1; n <= 9; n++ {
		require.Equal(t, Progress{Received: 1, Durable: 1}, sessions[n].Progress())
		require.Equal(t, n != 5, p.store.state(nid(n)).Agent != uuid.Nil)
	}
	require.Equal(t, []Refusal{{Sequence: 1, Refusal: agent.Refusal{
		Kind: agent.RefusedStore, Reason: "store", Message: "the database refused the agent's state", Count: 1,
	}}}, refusals)
	require.Equal(t, []string{"1"}, metric(t, p, "agentstatsd_states_rejected_total"))
}

func TestLastWriteAtShutdown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{WriteInterval: time.Hour}, registration(1, 1, 1))
		stop := running(t, p)
		s := connect(t, p, 1)
		time.Sleep(time.Second)
		receive(t, s, 1, func(r Request) { r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleOff}, 0) })
		stop()
		require.Equal(t, agent.LifecycleOff, p.store.state(nid(1)).Lifecycle.State)
		require.Equal(t, Progress{Received: 1, Durable: 1}, s.Progress())
	})
}

func TestRunLoadsWhatWasDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		j := &journal{}
		s := newMemStore(j)
		s.regs[nid(1)] = registration(1, 1, 1)
		s.spaces[nid(1001)] = registration(1, 1, 1).Workspace
		s.fail(errDown)
		p := newPartsOn(t, Options{}, s, j)
		require.ErrorIs(t, p.Load(t.Context()), errDown)
		stop := running(t, p)
		time.Sleep(time.Minute)
		_, err := p.Authenticate(t.Context(), token(1))
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorIs(t, p.Healthy(), ErrUnavailable)
		s.fail(nil)
		time.Sleep(maxBackoff)
		synctest.Wait()
		_, err = p.Authenticate(t.Context(), token(1))
		require.NoError(t, err)
		stop()

		s.fail(errDown)
		stop = running(t, newPartsOn(t, Options{}, s, j))
		time.Sleep(time.Minute)
		stop() // before it was loaded
	})
}

func TestNothingIsWrittenOfARemovedAgent(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s := connect(t, p, 1)
	receive(t, s, 1, func(r Request) { r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
	taken := p.queue.DrainStates(10)
	p.queue.AddState(taken[0])
	_, err := p.Deregister(t.Context(), ids(1), nil)
	require.NoError(t, err)
	require.NoError(t, p.write(t.Context()))
	_, ok := taken[0].drainState()
	require.False(t, ok)
	require.Empty(t, p.store.states)
	require.Empty(t, p.store.sessions)
}

func TestSessionsWaitForTheDatabase(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s := connect(t, p, 1)
	p.store.fail(errDown)
	require.ErrorIs(t, p.write(t.Context()), errDown)
	require.Equal(t, []string{"sessions 1"}, metric(t, p, "agentstatsd_fleet_write_errors_total"))
	p.store.fail(nil)
	require.NoError(t, p.write(t.Context()))
	require.Equal(t, s.Info().Epoch, p.store.epoch(nid(1)))
}
