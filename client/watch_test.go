package client_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client"
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
	agent, err := coderd.Relay(agentID, client.AgentOptions{Backoff: client.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}})
	require.NoError(t, err)
	running.Go(func() { _ = agent.Run(ctx) })
	running.Go(func() {
		for ctx.Err() == nil {
			agent.Report(&agentstatsv1.Stats{RxBytes: 3, ConnectionCount: 1})
			time.Sleep(5 * time.Millisecond)
		}
	})

	used, reported := make(chan time.Time), make(chan time.Time)
	running.Go(func() {
		err := coderd.WatchActivity(ctx, time.Second, func(r *agentstatsv1.WatchActivityResponse) {
			for _, w := range r.GetWorkspaces() {
				if uuid.UUID(w.GetWorkspaceId()) != workspaceID {
					t.Errorf("activity of %x", w.GetWorkspaceId())
				}
				select {
				case used <- w.GetLastUsedAt().AsTime():
				case <-ctx.Done():
				}
			}
		})
		if err != nil {
			t.Errorf("watch activity: %v", err)
		}
	})
	running.Go(func() {
		err := coderd.WatchStats(ctx, []uuid.UUID{agentID}, func(r *agentstatsv1.WatchStatsResponse) {
			for _, a := range r.GetAgents() {
				if got := a.GetStats().GetRxBytes(); got < 3*a.GetReports() || got == 0 {
					t.Errorf("%d bytes of %d reports", got, a.GetReports())
				}
				select {
				case reported <- a.GetReceivedAt().AsTime():
				case <-ctx.Done():
				}
			}
		})
		if err != nil {
			t.Errorf("watch stats: %v", err)
		}
	})
	<-used
	<-reported
	s.stopped()
	s.start()
	restarted := time.Now()
	for restarted.After(<-used) {
	}
	for restarted.After(<-reported) {
	}
}

func TestCoderdWatchReportsErrors(t *testing.T) {
	s, coderd := startCoderd(t)
	activity := func(*agentstatsv1.WatchActivityResponse) { t.Error("news") }
	stats := func(*agentstatsv1.WatchStatsResponse) { t.Error("news") }
	require.ErrorContains(t, coderd.WatchStats(t.Context(), make([]uuid.UUID, 1001), stats), "1001 agents are named")
	err := coderd.WatchActivity(t.Context(), time.Millisecond, activity)
	require.Equal(t, codes.InvalidArgument, status.Code(err), err)
	require.ErrorContains(t, err, "watch activity: ")

	_, err = coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	require.NoError(t, err)
	conn := s.conn(agentToken)
	defer closeConn(t, conn)
	agents, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	err = agents.WatchActivity(t.Context(), 0, activity)
	require.Equal(t, codes.PermissionDenied, status.Code(err), err)
	err = agents.WatchStats(t.Context(), nil, stats)
	require.Equal(t, codes.PermissionDenied, status.Code(err), err)
}
