package clienttest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Watches of reports go on over a restart of the service.
func TestCoderdWatchesReports(t *testing.T) {
	s, coderd := startCoderd(t)
	_, err := coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	agent, err := coderd.Relay(agentID, client.AgentOptions{ReportInterval: time.Millisecond, Backoff: client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}})
	require.NoError(t, err)
	running.Go(func() { _ = agent.Run(ctx) })
	running.Go(func() {
		for ctx.Err() == nil {
			agent.Report(&agentstatsv1.Stats{RxBytes: 3, ConnectionCount: 1})
			time.Sleep(5 * time.Millisecond)
		}
	})

	used, reported := make(chan time.Time), make(chan time.Time)
	activity := client.NewActivity(time.Second)
	send := func(to chan time.Time, at time.Time) {
		select {
		case to <- at:
		case <-ctx.Done():
		}
	}
	running.Go(func() {
		err := coderd.WatchStats(ctx, client.StatsWatch{Name: "insights", Handle: func(batch client.StatsBatch) error {
			for _, a := range batch.Agents {
				if got := a.GetStats().GetRxBytes(); got < 3*a.GetReports() || got == 0 {
					t.Errorf("%d bytes of %d reports", got, a.GetReports())
				}
				send(reported, a.GetReceivedAt().AsTime())
			}
			for _, use := range activity.Add(time.Now(), batch.Agents) {
				if use.WorkspaceID != workspaceID {
					t.Errorf("activity of %s", use.WorkspaceID)
				}
				send(used, use.At)
			}
			return nil
		}})
		if err != nil {
			t.Errorf("watch stats: %v", err)
		}
	})
	next := func(from chan time.Time, other chan time.Time) time.Time {
		for {
			select {
			case at := <-from:
				return at
			case <-other:
			}
		}
	}
	next(used, reported)
	s.stopped()
	s.start()
	restarted := time.Now()
	for restarted.After(next(used, reported)) {
	}
	for restarted.After(next(reported, used)) {
	}
}

func TestCoderdWatchReportsErrors(t *testing.T) {
	s, coderd := startCoderd(t)
	watch := func(name string) client.StatsWatch {
		return client.StatsWatch{Name: name, Handle: func(client.StatsBatch) error {
			t.Error("a response")
			return nil
		}}
	}
	for _, name := range []string{"", strings.Repeat("n", 65)} {
		require.ErrorContains(t, coderd.WatchStats(t.Context(), watch(name)), "the name has ")
	}
	err := coderd.WatchStats(t.Context(), watch("\x00"))
	require.Equal(t, codes.InvalidArgument, status.Code(err), err)
	require.ErrorContains(t, err, "watch stats: ")

	_, err = coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	require.NoError(t, err)
	conn := s.conn(agentToken)
	defer closeConn(t, conn)
	agents, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	err = agents.WatchStats(t.Context(), watch("insights"))
	require.Equal(t, codes.PermissionDenied, status.Code(err), err)
}

// A watch of agents begins anew after a restart of the service.
func TestCoderdWatchesAgents(t *testing.T) {
	s, coderd := startCoderd(t)
	_, err := coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	responses := make(chan *agentstatsv1.WatchAgentsResponse)
	running.Go(func() {
		err := coderd.WatchAgents(ctx, nil, func(r *agentstatsv1.WatchAgentsResponse) {
			select {
			case responses <- r:
			case <-ctx.Done():
			}
		})
		if err != nil {
			t.Errorf("watch agents: %v", err)
		}
	})
	until := func(what string, done func(*agentstatsv1.WatchAgentsResponse) bool) {
		t.Helper()
		for {
			select {
			case r := <-responses:
				if done(r) {
					return
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("did not come: %s", what)
			}
		}
	}
	is := func(want agentstatsv1.AgentStatus) func(*agentstatsv1.WatchAgentsResponse) bool {
		return func(r *agentstatsv1.WatchAgentsResponse) bool {
			return len(r.GetAgents()) == 1 && r.GetAgents()[0].GetStatus() == want && uuid.UUID(r.GetAgents()[0].GetAgentId()) == agentID
		}
	}
	synced := (*agentstatsv1.WatchAgentsResponse).GetSynced
	until("connecting", is(agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTING))
	until("synced", synced)

	agent, err := coderd.Relay(agentID, client.AgentOptions{ReportInterval: time.Millisecond, Backoff: client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}})
	require.NoError(t, err)
	running.Go(func() { _ = agent.Run(ctx) })
	until("connected", is(agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTED))
	s.stopped()
	s.start()
	// The agent may be back before the watch is.
	again, connected := false, false
	until("connected again", func(r *agentstatsv1.WatchAgentsResponse) bool {
		again = again || r.GetSynced()
		connected = connected || is(agentstatsv1.AgentStatus_AGENT_STATUS_CONNECTED)(r)
		return again && connected
	})
	_, err = coderd.Deregister(t.Context(), []uuid.UUID{agentID}, nil)
	require.NoError(t, err)
	until("removed", func(r *agentstatsv1.WatchAgentsResponse) bool { return len(r.GetRemovedIds()) == 1 })

	nothing := func(*agentstatsv1.WatchAgentsResponse) { t.Error("a response") }
	require.ErrorContains(t, coderd.WatchAgents(t.Context(), make([]uuid.UUID, 1001), nothing), "1001 agents are named")
}

// A watcher of stats that stands by has a stream: an outage ends with it.
func TestStreamsThatStandByAreOpen(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log, logger := newLog()
		s := startService()
		defer s.close()
		var stops []func() error
		for _, opts := range []client.CoderdOptions{
			{Logger: logger, Backoff: client.Backoff{Min: 20 * time.Second, Max: 20 * time.Second}},
			{Backoff: client.Backoff{Min: time.Second, Max: time.Second}}, // it comes back first
		} {
			conn := s.conn(coderdToken)
			defer closeConn(t, conn)
			coderd, err := client.NewCoderd(conn, opts)
			require.NoError(t, err)
			stops = append(stops, run(t.Context(), func(ctx context.Context) error {
				return coderd.WatchStats(ctx, client.StatsWatch{Name: "n", Handle: func(client.StatsBatch) error { return nil }})
			}), run(t.Context(), func(ctx context.Context) error {
				return coderd.WatchAgents(ctx, nil, func(*agentstatsv1.WatchAgentsResponse) {})
			}))
			time.Sleep(time.Minute)
		}
		require.Len(t, log.with("another one has the stream"), 1)
		s.stopped()
		time.Sleep(time.Minute)
		s.start()
		time.Sleep(5 * time.Minute)
		require.Contains(t, log.with("level=WARN")[0], "stream broke")
		require.Len(t, log.with("streams are open again"), 1)
		// One line more if the first one had the stream first once more.
		require.LessOrEqual(t, len(log.with("another one has the stream")), 2)
		for _, stop := range stops {
			require.NoError(t, stop())
		}
	})
}

// An outage of many watches and a push is few lines of each.
func TestStreamsLogAnOutageTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log, logger := newLog()
		s := startService()
		defer s.close()
		conn := s.conn(coderdToken)
		defer closeConn(t, conn)
		coderd, err := client.NewCoderd(conn, client.CoderdOptions{Logger: logger})
		require.NoError(t, err)
		var stops []func() error
		for range 20 {
			stops = append(stops, run(t.Context(), func(ctx context.Context) error {
				return coderd.WatchAgents(ctx, nil, func(*agentstatsv1.WatchAgentsResponse) {})
			}))
		}
		stops = append(stops, run(t.Context(), func(ctx context.Context) error {
			return client.PushGatherer(ctx, conn, newGate("a_total"), client.PushOptions{Logger: logger})
		}))
		time.Sleep(10 * time.Second)
		log.clear()
		s.stopped()
		time.Sleep(5 * time.Minute)
		s.start()
		time.Sleep(time.Minute)
		for stream, of := range map[string]int{"watch agents": 20, "push metrics": 1} {
			var broke []string
			for _, line := range log.with("stream broke") {
				if strings.Contains(line, stream) {
					broke = append(broke, line)
				}
			}
			require.GreaterOrEqual(t, len(broke), 4)
			require.LessOrEqual(t, len(broke), 6)
			require.Contains(t, broke[1], fmt.Sprintf("streams=%d", of))
		}
		require.Len(t, log.with("streams are open again"), 2)
		for _, stop := range stops {
			require.NoError(t, stop())
		}
	})
}
