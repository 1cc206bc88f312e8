package clienttest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestAgentReconnectsWhenAsked(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		var states []client.State
		agent, err := client.NewAgent(conn, client.AgentOptions{OnState: func(s client.State) { states = append(states, s) }})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		synctest.Wait()
		asked := time.Now()
		fake.respond(&agentstatsv1.ConnectResponse{Reconnect: &agentstatsv1.Reconnect{Delay: durationpb.New(20 * time.Second), Reason: "draining"}})
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

// However a session ends, the agents of a replica do not come back in one
// instant, nor late.
func TestAgentsComeBackSpread(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*fakeService)
	}{
		{"asked to reconnect", func(f *fakeService) {
			f.respond(&agentstatsv1.ConnectResponse{Reconnect: &agentstatsv1.Reconnect{}})
		}},
		{"superseded", func(f *fakeService) { f.kill(codes.Aborted) }},
		{"unavailable", func(f *fakeService) { f.kill(codes.Unavailable) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				fake, _, conn := startFake(t)
				agent, err := client.NewAgent(conn, client.AgentOptions{
					Collect: func(context.Context) *agentstatsv1.Stats { return &agentstatsv1.Stats{} },
				})
				require.NoError(t, err)
				stop := run(t.Context(), agent.Run)
				var waits []time.Duration
				for range 100 {
					// Long enough not to be one of two that supersede each other.
					time.Sleep(31 * time.Second)
					require.Equal(t, client.Connected, agent.Status().Connection)
					test.end(fake)
					synctest.Wait()
					require.Equal(t, client.Waiting, agent.Status().Connection)
					waits = append(waits, agent.Status().Wait)
				}
				slices.Sort(waits)
				require.Less(t, waits[0], 200*time.Millisecond)
				require.Greater(t, waits[99], 800*time.Millisecond)
				require.LessOrEqual(t, waits[99], time.Second)
				require.Len(t, slices.Compact(waits), 100)
				require.NoError(t, stop())
			})
		})
	}
}

// balance returns a dial function that goes from network to network, as a load
// balancer does.
func balance(networks ...*network) func() (*grpc.ClientConn, error) {
	next := 0
	return func() (*grpc.ClientConn, error) {
		n := networks[next%len(networks)]
		next++
		return grpc.NewClient("passthrough:///balanced", n.plaintext()...)
	}
}

// A replica that does not know the instance gets what is not durable, and no
// count that another one has taken in.
func TestAgentMovesToAnotherReplica(t *testing.T) {
	for _, test := range []struct {
		name  string
		leave func(*fakeService, *network)
	}{
		{"asked to reconnect", func(f *fakeService, _ *network) {
			f.respond(&agentstatsv1.ConnectResponse{Reconnect: &agentstatsv1.Reconnect{Reason: "draining"}})
		}},
		{"refused", func(f *fakeService, _ *network) {
			f.openError = status.Error(codes.Unavailable, "the service is stopping")
			f.kill(codes.Unavailable)
		}},
		{"killed", func(_ *fakeService, n *network) { n.stop() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				first, firstNetwork, _ := startFake(t)
				second, secondNetwork, _ := startFake(t)
				second.epoch = 5 // behind the first one's
				first.epoch = 100
				first.settings.ReportInterval = durationpb.New(time.Second)
				second.settings.ReportInterval = durationpb.New(time.Second)
				agent, err := client.NewDialingAgent(balance(firstNetwork, secondNetwork), client.AgentOptions{})
				require.NoError(t, err)
				stop := run(t.Context(), agent.Run)
				agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Time{})
				agent.Report(&agentstatsv1.Stats{RxBytes: 1})
				require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "a", Value: "1"}))
				synctest.Wait()
				first.flush()
				require.NoError(t, agent.Flush(t.Context()))
				require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "b", Value: "2"}))
				agent.Report(&agentstatsv1.Stats{RxBytes: 2})
				time.Sleep(time.Second)
				synctest.Wait()

				test.leave(first, firstNetwork)
				time.Sleep(20 * time.Second)
				require.Equal(t, client.Connected, agent.Status().Connection)
				agent.Report(&agentstatsv1.Stats{RxBytes: 4})
				time.Sleep(time.Second)
				second.flush()
				require.NoError(t, agent.Flush(t.Context()))
				require.NoError(t, stop())
				first.locked(func() {
					require.Equal(t, [][]int64{{1, 2}}, first.lives)
					require.Equal(t, []int64{0}, first.epochs)
				})
				second.locked(func() {
					require.Equal(t, [][]int64{{4}}, second.lives)
					require.Equal(t, map[string]string{"b": "2"}, second.database)
					require.Equal(t, agentstatsv1.Lifecycle_STATE_READY, second.lifecycle.GetState())
					require.Equal(t, []int64{101}, second.epochs)
					require.Equal(t, []int64{2}, second.ordinals)
				})
			})
		})
	}
}

// Each session has a connection of its own, that lives as long as it does.
func TestDialingAgent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, n, _ := startFake(t)
		var conns []*grpc.ClientConn
		var ends []string
		dial := balance(n)
		agent, err := client.NewDialingAgent(func() (*grpc.ClientConn, error) {
			if len(conns) == 2 && len(ends) == 2 {
				return nil, errors.New("no roots")
			}
			conn, err := dial()
			conns = append(conns, conn)
			return conn, err
		}, client.AgentOptions{OnState: func(s client.State) {
			if s.Connection == client.Waiting {
				ends = append(ends, s.Err.Error())
			}
		}})
		require.NoError(t, err)
		require.Empty(t, conns, "nothing before Run")
		stop := run(t.Context(), agent.Run)
		for i := range 3 {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			require.Len(t, conns, i+1)
			for _, former := range conns[:i] {
				require.Equal(t, connectivity.Shutdown, former.GetState())
			}
			require.Equal(t, connectivity.Ready, conns[i].GetState())
			fake.kill(codes.Unavailable)
		}
		synctest.Wait()
		require.NoError(t, stop())
		require.Equal(t, connectivity.Shutdown, conns[2].GetState())
		killed := "rpc error: code = Unavailable desc = killed"
		require.Equal(t, []string{killed, killed, "open session: no roots", killed}, ends)
		fake.locked(func() { require.Equal(t, []int64{0, 1, 2}, fake.epochs) })
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
			bubble.Test(t, func(t *testing.T) {
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
	bubble.Test(t, func(t *testing.T) {
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
	bubble.Test(t, func(t *testing.T) {
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
	bubble.Test(t, func(t *testing.T) {
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
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startFake(t)
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Collect: func(context.Context) *agentstatsv1.Stats { return &agentstatsv1.Stats{} },
		})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		synctest.Wait()
		fake.respond(&agentstatsv1.ConnectResponse{Settings: &agentstatsv1.Settings{ReportInterval: durationpb.New(2 * time.Second)}})
		time.Sleep(20*time.Second + time.Millisecond)
		synctest.Wait()
		require.Equal(t, 2*time.Second, agent.Status().ReportInterval)
		require.NoError(t, stop())
		fake.locked(func() { require.Contains(t, []int{11, 12}, len(fake.lives[0])) })
	})
}
