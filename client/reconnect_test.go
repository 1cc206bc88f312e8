package client_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestAgentReconnectsWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		var states []client.State
		agent, err := client.NewAgent(conn, client.AgentOptions{OnState: func(s client.State) { states = append(states, s) }})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		synctest.Wait()
		asked := time.Now()
		fake.tell(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Reconnect{
			Reconnect: &agentstatsv1.Reconnect{Delay: durationpb.New(20 * time.Second), Reason: "draining"},
		}})
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		fake.locked(func() {
			require.Len(t, fake.openedAt, 2)
			waited := fake.openedAt[1].Sub(asked)
			require.GreaterOrEqual(t, waited, 20*time.Second)
			require.LessOrEqual(t, waited, 21*time.Second)
		})
		var connections []client.Connection
		for _, s := range states {
			connections = append(connections, s.Connection)
		}
		require.Equal(t, []client.Connection{
			client.Connecting, client.Connected, client.Waiting, client.Connecting, client.Connected, client.Stopped,
		}, connections)
	})
}

// Every error is tried again, ever more seldom, and a delay that the service
// asks for is kept.
func TestAgentBacksOff(t *testing.T) {
	exhausted, err := status.New(codes.ResourceExhausted, "too much").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(100 * time.Second)})
	require.NoError(t, err)
	for _, test := range []struct {
		name     string
		err      error
		min, max time.Duration
	}{
		{"unauthenticated", status.Error(codes.Unauthenticated, ""), 0, 30 * time.Second},
		{"unavailable", status.Error(codes.Unavailable, ""), 0, 30 * time.Second},
		{"unimplemented", status.Error(codes.Unimplemented, ""), 0, 30 * time.Second},
		{"asked to wait", exhausted.Err(), 100 * time.Second, 130 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake, _, conn := startFake(t)
				fake.openError = test.err
				agent, err := client.NewAgent(conn, client.AgentOptions{})
				require.NoError(t, err)
				stop := run(t.Context(), agent.Run)
				time.Sleep(time.Hour)
				synctest.Wait()
				fake.locked(func() {
					fake.openError = nil
					attempts := fake.openedAt
					require.Greater(t, len(attempts), 20)
					for i := 1; i < len(attempts); i++ {
						require.GreaterOrEqual(t, attempts[i].Sub(attempts[i-1]), test.min)
						require.LessOrEqual(t, attempts[i].Sub(attempts[i-1]), test.max)
					}
					require.Less(t, len(attempts), 500, "an average of 15 s")
				})
				require.Equal(t, client.Waiting, agent.Status().Connection)
				time.Sleep(3 * time.Minute)
				require.Equal(t, client.Connected, agent.Status().Connection)
				require.NoError(t, stop())
			})
		})
	}
}

// After a session that was of use the waits are short again.
func TestAgentBackoffBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Collect: func(context.Context) *agentstatsv1.Stats { return &agentstatsv1.Stats{} },
		})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		for range 20 {
			time.Sleep(2 * time.Second)
			require.Equal(t, client.Connected, agent.Status().Connection)
			fake.kill(codes.Unavailable)
			synctest.Wait()
			require.Equal(t, client.Waiting, agent.Status().Connection)
			require.LessOrEqual(t, agent.Status().Wait, time.Second)
		}
		require.NoError(t, stop())
	})
}

// Two processes with one agent's token do not chase each other in a tight loop.
func TestAgentBacksOffWhenSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		var stops []func() error
		for range 2 {
			agent, err := client.NewAgent(conn, client.AgentOptions{
				Collect: func(context.Context) *agentstatsv1.Stats { return &agentstatsv1.Stats{} },
			})
			require.NoError(t, err)
			stops = append(stops, run(t.Context(), agent.Run))
		}
		time.Sleep(30 * time.Minute)
		for _, stop := range stops {
			require.NoError(t, stop())
		}
		fake.locked(func() { require.Less(t, len(fake.openedAt), 300) })
	})
}

func TestAgentHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		fake.locked(func() { fake.hang = true })
		agent, err := client.NewAgent(conn, client.AgentOptions{})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		time.Sleep(30*time.Second + time.Millisecond)
		require.EqualError(t, agent.Status().Err, "open session: no settings within 30s")
		fake.locked(func() { fake.hang = false })
		time.Sleep(3 * time.Second)
		require.Equal(t, client.Connected, agent.Status().Connection)
		require.NoError(t, stop())
	})
}

func TestAgentFollowsSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Collect: func(context.Context) *agentstatsv1.Stats { return &agentstatsv1.Stats{} },
		})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		synctest.Wait()
		fake.tell(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Settings{
			Settings: &agentstatsv1.Settings{ReportInterval: durationpb.New(2 * time.Second)},
		}})
		time.Sleep(20*time.Second + time.Millisecond)
		synctest.Wait()
		require.Equal(t, 2*time.Second, agent.Status().ReportInterval)
		require.NoError(t, stop())
		fake.locked(func() { require.Contains(t, []int{11, 12}, len(fake.lives[0])) })
	})
}
