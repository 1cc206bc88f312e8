package clienttest

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// startRelays starts a service that knows the agent, and so many coderds that relay.
func startRelays(t *testing.T, n int, opts client.RelaysOptions) (*service, []*client.Relays) {
	t.Helper()
	s := startService()
	t.Cleanup(s.close)
	relays := make([]*client.Relays, n)
	for i := range relays {
		conn := s.conn(coderdToken)
		coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
		require.NoError(t, err)
		_, err = coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
		require.NoError(t, err)
		relays[i], err = coderd.Relays(opts)
		require.NoError(t, err)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			require.NoError(t, relays[i].Close(ctx))
			require.NoError(t, conn.Close())
		})
	}
	return s, relays
}

func connectRelayed(t *testing.T, r *client.Relays) *client.RelayedAgent {
	t.Helper()
	a, err := r.Connect(agentID, "agent")
	require.NoError(t, err)
	return a
}

func (s *service) agentInfo(t *testing.T) (agent.Status, agent.LifecycleState) {
	t.Helper()
	info, err := s.fleet.Agent(agentID)
	require.NoError(t, err)
	return info.Status, info.State.CurrentLifecycle()
}

// counter returns the value of the family's counter with the label value.
func (s *service) counter(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := s.registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no %s{%s}", name, label)
	return 0
}

// Two coderds that both consider the agent connected do not take the session from each
// other while the agent says nothing. Whoever it talks to has it.
func TestRelaysDoNotTakeTurns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 2, client.RelaysOptions{})
		takeovers := func() float64 { return s.counter(t, "agentstatsd_sessions_ended_total", "takeover") }
		one := connectRelayed(t, relays[0])
		one.SetLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, time.Now())
		time.Sleep(time.Minute)
		two := connectRelayed(t, relays[1])
		two.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		time.Sleep(time.Minute)
		require.Equal(t, 1.0, takeovers())
		time.Sleep(time.Hour / 4)
		require.Equal(t, 1.0, takeovers(), "nobody has anything new")
		one.Report(&agentstatsv1.Stats{RxBytes: 1})
		time.Sleep(time.Minute)
		require.Equal(t, 2.0, takeovers())
		_, lifecycle := s.agentInfo(t)
		require.Equal(t, agent.LifecycleReady, lifecycle)
		time.Sleep(time.Hour / 4)
		require.Equal(t, 2.0, takeovers())
		require.Equal(t, 2.0, s.counter(t, "agentstatsd_agent_requests_total", "lifecycle"), "what is acked is not repeated")
		one.Disconnect()
		two.Disconnect()
		time.Sleep(time.Minute)
		status, _ := s.agentInfo(t)
		require.Equal(t, agent.StatusDisconnected, status)
	})
}

// What an agent says at a coderd just before it is at another one counts within seconds. The
// service had not received it when the other one's session began.
func TestRelaysDeliverSoonWhatWasNotReceived(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 2, client.RelaysOptions{})
		one, two := connectRelayed(t, relays[0]), connectRelayed(t, relays[1])
		two.SetLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, time.Now())
		time.Sleep(time.Minute)
		one.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		time.Sleep(time.Minute)
		// The report waits for others to go with.
		one.Report(&agentstatsv1.Stats{RxBytes: 7})
		two.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		time.Sleep(3 * time.Second)
		var text strings.Builder
		require.NoError(t, s.aggregator.WriteText(&text))
		require.Regexp(t, `(?m)^coderd_agentstats_rx_bytes\{.*\} +7$`, text.String())
		one.Disconnect()
		two.Disconnect()
	})
}

// The agent counts as connected while one of its connections lasts. What it says in an
// outage is sent after it, though it has left.
func TestRelayOutlastsConnections(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 1, client.RelaysOptions{})
		first, second := connectRelayed(t, relays[0]), connectRelayed(t, relays[0])
		time.Sleep(5 * time.Second)
		first.Disconnect()
		first.Disconnect()
		first.SetLifecycle(agentstatsv1.Lifecycle_STATE_OFF, time.Now())
		time.Sleep(5 * time.Second)
		status, lifecycle := s.agentInfo(t)
		require.Equal(t, agent.StatusConnected, status)
		require.Equal(t, agent.LifecycleCreated, lifecycle, "the handle does nothing any more")
		s.stopped()
		second.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		second.Disconnect()
		time.Sleep(6 * time.Minute) // longer than Idle
		s.start()
		time.Sleep(time.Minute)
		status, lifecycle = s.agentInfo(t)
		require.Equal(t, agent.StatusDisconnected, status)
		require.Equal(t, agent.LifecycleReady, lifecycle)
	})
}

// Of the connection of a log streamer nothing is relayed.
func TestRelaysOfAnotherRole(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 1, client.RelaysOptions{})
		streamer, err := relays[0].Connect(agentID, "logstreamer")
		require.NoError(t, err)
		streamer.SetLifecycle(agentstatsv1.Lifecycle_STATE_OFF, time.Now())
		require.NoError(t, streamer.UpdateMetadata(client.Metadata{Key: "k"}))
		require.NoError(t, streamer.SetAppHealth(appID, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
		require.NoError(t, streamer.SetNetwork(&agentstatsv1.Network{NodeId: 1}))
		time.Sleep(10 * time.Second)
		info, err := s.fleet.Agent(agentID)
		require.NoError(t, err)
		require.NotEqual(t, agent.StatusConnected, info.Status)
		require.Equal(t, agent.LifecycleCreated, info.State.CurrentLifecycle())
		streamer.Disconnect()
	})
}

// What an agent said here first, and said otherwise at another coderd, it can say here
// again.
func TestRelaysAreNotTheOnlyOnes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 2, client.RelaysOptions{})
		say := func(coderd int, health agentstatsv1.AppHealth) {
			a := connectRelayed(t, relays[coderd])
			require.NoError(t, a.SetAppHealth(appID, health))
			require.NoError(t, a.SetNetwork(&agentstatsv1.Network{NodeId: uint64(health)}))
			time.Sleep(10 * time.Second)
			info, err := s.fleet.Agent(agentID)
			require.NoError(t, err)
			require.Equal(t, contractHealth[health], info.State.AppHealth[appID])
			require.EqualValues(t, health, info.State.Network.NodeID)
			a.Disconnect()
		}
		say(0, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY)
		say(1, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY)
		say(0, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY)
	})
}

var contractHealth = map[agentstatsv1.AppHealth]agent.AppHealth{
	agentstatsv1.AppHealth_APP_HEALTH_HEALTHY: agent.AppHealthHealthy, agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY: agent.AppHealthUnhealthy,
}

// Of an agent that was deregistered, and is registered again, its relay says again what the
// service has forgotten.
func TestRelaysOfAnAgentThatWasForgotten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 1, client.RelaysOptions{})
		conn := s.conn(coderdToken)
		defer func() { require.NoError(t, conn.Close()) }()
		coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
		require.NoError(t, err)
		a := connectRelayed(t, relays[0])
		defer a.Disconnect()
		a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		require.NoError(t, a.SetAppHealth(appID, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
		time.Sleep(time.Minute)
		_, err = coderd.Deregister(t.Context(), []uuid.UUID{agentID}, nil)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		_, err = coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		info, err := s.fleet.Agent(agentID)
		require.NoError(t, err)
		require.Equal(t, agent.LifecycleReady, info.State.CurrentLifecycle())
		require.Equal(t, agent.AppHealthHealthy, info.State.AppHealth[appID])
	})
}

// Close ends a Goodbye that waits longer than it may itself.
func TestRelaysCloseEndsGoodbyes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, relays := startRelays(t, 1, client.RelaysOptions{})
		unknown := uuid.UUID{1}
		a, err := relays[0].Connect(unknown, "")
		require.NoError(t, err)
		a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		waiting, stop := context.WithCancel(t.Context())
		defer stop()
		said, closed := make(chan error, 1), make(chan error, 1)
		go func() { said <- relays[0].Goodbye(waiting, unknown) }()
		synctest.Wait()
		closing, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		go func() { closed <- relays[0].Close(closing) }()
		time.Sleep(4 * time.Second)
		require.Empty(t, said, "it has time")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(closed) == 0 {
			stop()
			t.Error("Close waits for the Goodbye")
		}
		require.ErrorContains(t, <-said, "goodbye of agent")
		require.NoError(t, <-closed)
	})
}

// Relays are bounded. One that is kept for a next connection makes room.
func TestRelaysAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, relays := startRelays(t, 1, client.RelaysOptions{MaxAgents: 1})
		one := connectRelayed(t, relays[0])
		other := uuid.UUID{1}
		_, err := relays[0].Connect(other, "")
		require.EqualError(t, err, "relay agent "+other.String()+": want at most 1 relays (RelaysOptions.MaxAgents), there are 1")
		one.Disconnect()
		two, err := relays[0].Connect(other, "")
		require.NoError(t, err)
		two.Disconnect()
		require.NoError(t, relays[0].Close(t.Context()))
		_, err = relays[0].Connect(other, "")
		require.ErrorContains(t, err, "closed")
	})
	for _, opts := range []client.RelaysOptions{{Idle: -1}, {MaxAgents: -1}, {Backoff: client.Backoff{Min: -1}}} {
		coderd, err := client.NewCoderd(nil, client.CoderdOptions{})
		require.NoError(t, err)
		_, err = coderd.Relays(opts)
		require.ErrorContains(t, err, "relays options: ")
	}
}

// A goodbye ends the agent's presence. Close sends what is pending, and keeps the series.
func TestRelaysEnd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 2, client.RelaysOptions{})
		report := func(a *client.RelayedAgent) {
			a.Report(&agentstatsv1.Stats{Metrics: []*agentstatsv1.Stats_Metric{{Name: "work_total", Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Value: 1}}})
		}
		lines := func() int {
			synctest.Wait()
			var b strings.Builder
			require.NoError(t, s.aggregator.WriteText(&b))
			return strings.Count(b.String(), "\nwork_total{")
		}
		a := connectRelayed(t, relays[0])
		report(a)
		require.NoError(t, relays[0].Goodbye(t.Context(), agentID))
		require.NoError(t, relays[0].Goodbye(t.Context(), agentID), "there is no relay")
		require.Zero(t, lines())
		a.Disconnect()
		b := connectRelayed(t, relays[1])
		report(b)
		b.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Time{})
		require.NoError(t, relays[1].Close(t.Context()))
		require.Equal(t, 1, lines())
		_, lifecycle := s.agentInfo(t)
		require.Equal(t, agent.LifecycleReady, lifecycle)
		report(b)
		b.Disconnect()
	})
}

// The bytes of an agent that moves to another coderd stay in the sum of their window.
func TestRelaysMoveWithTheirBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 2, client.RelaysOptions{})
		for i, bytes := range []int64{5, 7} {
			a := connectRelayed(t, relays[i])
			a.Report(&agentstatsv1.Stats{RxBytes: bytes})
			time.Sleep(5 * time.Second)
			a.Disconnect()
		}
		var text strings.Builder
		require.NoError(t, s.aggregator.WriteText(&text))
		require.Regexp(t, `(?m)^coderd_agentstats_rx_bytes\{.*\} +12$`, text.String())
	})
}

// That something is lost of many agents is two lines a minute.
func TestRelaysLogWhatIsLostTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log, logger := newLog()
		s, relays := startRelays(t, 1, client.RelaysOptions{Logger: logger})
		s.stopped()
		for _, r := range registrations(50) {
			a, err := relays[0].ConnectRegistered(r, "")
			require.NoError(t, err)
			a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
			a.Disconnect()
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Hour)
		lost := log.with("is lost")
		require.Len(t, lost, 2)
		require.Contains(t, lost[0], "agent=")
		require.Contains(t, lost[1], "agents=49")
	})
}

// What cannot be sent of an agent that has left is given up after an hour. Close waits
// for it no longer than it may.
func TestRelaysGiveUp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, relays := startRelays(t, 1, client.RelaysOptions{MaxAgents: 1})
		unknown, other := uuid.UUID{1}, uuid.UUID{2}
		leave := func() {
			a, err := relays[0].Connect(unknown, "")
			require.NoError(t, err)
			a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
			a.Disconnect()
		}
		leave()
		time.Sleep(59 * time.Minute)
		_, err := relays[0].Connect(other, "")
		require.ErrorContains(t, err, "want at most 1 relays")
		time.Sleep(time.Minute + time.Second)
		b, err := relays[0].Connect(other, "")
		require.NoError(t, err)
		b.Disconnect()
		leave()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		require.ErrorContains(t, relays[0].Close(ctx), "close relays: of 1 of 1 agents not all was received: ")
		require.Equal(t, 5*time.Second, time.Since(began))
	})
}

// An outage is a line when it begins, one a minute, and one when it ends, however many
// agents there are. That an agent moves is none of them.
func TestRelaysLogAnOutageTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log, logger := newLog()
		s, relays := startRelays(t, 2, client.RelaysOptions{Logger: logger})
		var handles []*client.RelayedAgent
		for _, r := range registrations(50) {
			a, err := relays[0].ConnectRegistered(r, "")
			require.NoError(t, err)
			handles = append(handles, a)
		}
		time.Sleep(10 * time.Second)
		log.clear()
		s.stopped()
		time.Sleep(5 * time.Minute)
		s.start()
		time.Sleep(time.Minute)
		warnings := log.with("level=WARN")
		require.Contains(t, warnings[0], "agents have no session with the service")
		require.Contains(t, warnings[1], "agents=50")
		require.Contains(t, warnings[1], "error=")
		require.GreaterOrEqual(t, len(warnings), 4)
		require.LessOrEqual(t, len(warnings), 6)
		require.Len(t, log.with("agents have their sessions with the service again"), 1)
		require.Len(t, log.with(""), len(warnings)+1)

		log.clear()
		elsewhere := connectRelayed(t, relays[1])
		here := connectRelayed(t, relays[0])
		for range 3 {
			elsewhere.SetLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, time.Now())
			time.Sleep(5 * time.Second)
			here.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
			time.Sleep(5 * time.Second)
		}
		require.Greater(t, s.counter(t, "agentstatsd_sessions_ended_total", "takeover"), 3.0)
		require.Empty(t, log.with(""))
		for _, a := range append(handles, elsewhere, here) {
			a.Disconnect()
		}
	})
	// Of an agent by itself likewise.
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		log, logger := newLog()
		agent, err := client.NewAgent(conn, client.AgentOptions{Logger: logger})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		time.Sleep(time.Second)
		fake.locked(func() { fake.openError = status.Error(codes.Unavailable, "away") })
		fake.kill(codes.Unavailable)
		time.Sleep(5 * time.Minute)
		fake.locked(func() { fake.openError = nil })
		time.Sleep(time.Minute)
		require.LessOrEqual(t, len(log.with("level=WARN")), 6)
		require.Len(t, log.with("agents have their sessions with the service again"), 1)
		require.Len(t, log.with("session opened"), 2)
		require.NoError(t, stop())
	})
}

// After an outage of seconds all sessions are back within seconds, though each agent by
// itself would wait for longer.
func TestRelaysComeBackTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 1, client.RelaysOptions{})
		var ids []agent.ID
		for _, r := range registrations(50) {
			a, err := relays[0].ConnectRegistered(r, "")
			require.NoError(t, err)
			defer a.Disconnect()
			ids = append(ids, agent.ID(r.GetId()))
		}
		connected := func() (n int) {
			for _, id := range ids {
				info, err := s.fleet.Agent(id)
				require.NoError(t, err)
				if info.Status == agent.StatusConnected {
					n++
				}
			}
			return n
		}
		time.Sleep(10 * time.Second)
		require.Equal(t, 50, connected())
		for _, away := range []time.Duration{2 * time.Second, 3 * time.Second} {
			s.stopped()
			time.Sleep(away)
			s.start()
			// The connection takes up to 5 s of it: gRPC waits for its next attempt.
			time.Sleep(8 * time.Second)
			require.Equal(t, 50, connected(), away)
			time.Sleep(30 * time.Second)
		}
	})
}

// Close waits for what the service has not received, not for what it has not stored yet.
func TestRelaysCloseOnceAllIsReceived(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 1, client.RelaysOptions{})
		s.stopped()
		s.flushInterval = time.Minute
		s.start()
		a := connectRelayed(t, relays[0])
		time.Sleep(time.Minute / 4) // the connection is up again
		a.Report(&agentstatsv1.Stats{RxBytes: 1})
		a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		require.NoError(t, a.UpdateMetadata(client.Metadata{Key: "k", Value: "v"}))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		require.NoError(t, relays[0].Close(ctx))
		require.Less(t, time.Since(began), time.Second)
		a.Disconnect()

		time.Sleep(2 * time.Minute)
		conn := s.conn(coderdToken)
		defer closeConn(t, conn)
		coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
		require.NoError(t, err)
		stored, err := coderd.Metadata(t.Context(), agentID)
		require.NoError(t, err)
		require.Equal(t, "v", stored[0].GetValues()[0].GetValue())
		_, lifecycle := s.agentInfo(t)
		require.Equal(t, agent.LifecycleReady, lifecycle)
	})
}

// A function of the host that hangs keeps Close for 2 s, and no longer than a second after
// its context. What agents said is sent meanwhile.
func TestRelaysCloseWhileAFunctionHangs(t *testing.T) {
	for _, isRunning := range []bool{true, false} {
		bubble.Test(t, func(t *testing.T) {
			hanging := make(chan struct{})
			s, relays := startRelays(t, 1, client.RelaysOptions{OnRefusal: func(uuid.UUID, *agentstatsv1.Refusal) { <-hanging }})
			a := connectRelayed(t, relays[0])
			a.Report(&agentstatsv1.Stats{Metrics: []*agentstatsv1.Stats_Metric{{Name: "go_info", Type: agentstatsv1.Stats_Metric_TYPE_GAUGE}}})
			time.Sleep(5 * time.Second)
			if !isRunning {
				s.stopped()
			}
			a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			began := time.Now()
			err := relays[0].Close(ctx)
			require.LessOrEqual(t, time.Since(began), 4*time.Second)
			if isRunning {
				require.NoError(t, err)
				require.LessOrEqual(t, time.Since(began), 3*time.Second)
				_, lifecycle := s.agentInfo(t)
				require.Equal(t, agent.LifecycleReady, lifecycle)
			} else {
				require.ErrorContains(t, err, "of 1 of 1 agents not all was received")
				s.start()
			}
			close(hanging)
			a.Disconnect()
		})
	}
}

// Handles that do nothing: nil ones, as beside an error, and those of nil Relays.
func TestRelaysHandlesThatDoNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, relays := startRelays(t, 1, client.RelaysOptions{})
		require.NoError(t, relays[0].Close(t.Context()))
		closed, err := relays[0].Connect(agentID, "")
		require.ErrorContains(t, err, "closed")
		none, err := (*client.Relays)(nil).Connect(agentID, "")
		require.NoError(t, err)
		unregistered, err := (*client.Relays)(nil).ConnectRegistered(registration(), "")
		require.NoError(t, err)
		require.NoError(t, (*client.Relays)(nil).Goodbye(t.Context(), agentID))
		require.NoError(t, (*client.Relays)(nil).Close(t.Context()))
		for _, a := range []*client.RelayedAgent{closed, none, unregistered, {}} {
			a.Report(&agentstatsv1.Stats{})
			a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
			a.RestoreLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
			require.NoError(t, a.UpdateMetadata(client.Metadata{Key: "k"}))
			require.NoError(t, a.SetAppHealth(appID, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY))
			require.NoError(t, a.SetNetwork(&agentstatsv1.Network{}))
			a.Disconnect()
		}
	})
}

// A state that coderd has stored is served, unless the agent has said a later one.
func TestRelaysRestoreTheLifecycle(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, relays := startRelays(t, 2, client.RelaysOptions{})
		started := time.Now()
		requireLifecycle := func(want agent.LifecycleState) {
			t.Helper()
			time.Sleep(10 * time.Second)
			_, lifecycle := s.agentInfo(t)
			require.Equal(t, want, lifecycle)
		}
		a := connectRelayed(t, relays[0])
		a.RestoreLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Time{})
		requireLifecycle(agent.LifecycleCreated)
		a.RestoreLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, started)
		requireLifecycle(agent.LifecycleStarting)
		a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
		requireLifecycle(agent.LifecycleReady)
		again := connectRelayed(t, relays[0])
		again.RestoreLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, started)
		requireLifecycle(agent.LifecycleReady)
		elsewhere := connectRelayed(t, relays[1])
		elsewhere.RestoreLifecycle(agentstatsv1.Lifecycle_STATE_STARTING, started)
		requireLifecycle(agent.LifecycleReady)
		elsewhere.RestoreLifecycle(agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN, time.Now())
		requireLifecycle(agent.LifecycleShuttingDown)
		for _, handle := range []*client.RelayedAgent{a, again, elsewhere} {
			handle.Disconnect()
		}
	})
}

// A relay that waits after an outage when it is to end, or says goodbye, does not wait for
// longer.
func TestRelaysTryAtOnceAtTheEnd(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(context.Context, *client.Relays) error
	}{
		{"close", func(ctx context.Context, r *client.Relays) error { return r.Close(ctx) }},
		{"goodbye", func(ctx context.Context, r *client.Relays) error { return r.Goodbye(ctx, agentID) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s, relays := startRelays(t, 1, client.RelaysOptions{Backoff: client.Backoff{Min: time.Hour, Max: time.Hour}})
				a := connectRelayed(t, relays[0])
				time.Sleep(time.Second)
				s.stopped()
				a.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
				s.start()
				time.Sleep(10 * time.Second) // the connection is up again
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				require.NoError(t, test.end(ctx, relays[0]))
				_, lifecycle := s.agentInfo(t)
				require.Equal(t, agent.LifecycleReady, lifecycle)
				a.Disconnect()
			})
		})
	}
}
