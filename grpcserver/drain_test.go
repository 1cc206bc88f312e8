package grpcserver_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestDrain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{
			Server:  grpcserver.Options{HelloTimeout: time.Minute},
			Batcher: batcher.Options{BatchSize: 500, FlushInterval: time.Second, MaxPending: 10_000},
		})
		s.Register(1, 2)
		follows, ignores := s.Connect(edgetest.Session{Agent: 1}), s.Connect(edgetest.Session{Agent: 2})
		silent := s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
		watch, err := s.Coderd().WatchMetadata(s.AsCoderd(), &pb.WatchMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
		require.NoError(t, err)
		synced, err := watch.Recv()
		require.NoError(t, err)
		require.True(t, synced.GetSynced())
		sync, err := s.Coderd().SyncAgents(s.AsCoderd())
		require.NoError(t, err)
		require.NoError(t, sync.Send(&pb.SyncAgentsRequest{}))
		stays, err := healthpb.NewHealthClient(s.Conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		require.NoError(t, err)
		_, err = stays.Recv()
		require.NoError(t, err)
		synctest.Wait()

		began := time.Now()
		stopped := make(chan time.Duration, 1)
		go func() { s.Stop(); stopped <- time.Since(began) }()
		_, err = watch.Recv()
		require.Equal(t, codes.Unavailable, status.Code(err))
		_, err = sync.CloseAndRecv()
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.Zero(t, time.Since(began), "watches and syncs end at once")
		// The connection takes no more streams, and there is no other one.
		synctest.Wait()
		_, err = healthpb.NewHealthClient(s.Conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		require.Equal(t, codes.Unavailable, status.Code(err))
		for _, c := range []*edgetest.Stream{follows, ignores} {
			reconnect := c.Next().GetReconnect()
			require.Equal(t, "draining", reconnect.GetReason())
			require.Zero(t, reconnect.GetDelay().AsDuration(), "it stays until the others have gone")
		}
		require.Positive(t, time.Since(began), "they are asked one after another")
		require.LessOrEqual(t, time.Since(began), 7500*time.Millisecond)

		// What it has it may still send.
		follows.SendNext(edgetest.Metadata("k", "v"))
		follows.RequireDurable(1)
		require.NoError(t, follows.CloseSend())
		follows.RequireEnd(codes.OK, "")
		ignores.RequireEnd(codes.Unavailable, "the service is stopping; connect again elsewhere or later")
		silent.RequireEnd(codes.Unavailable, "the service is stopping; connect again elsewhere or later")
		require.Equal(t, 10*time.Second, time.Since(began))
		require.Equal(t, 12*time.Second, <-stopped, "who watches the health leaves when the connection does")
		require.Equal(t, 2.0, s.Counter("agentstatsd_sessions_ended_total", "drain"))
	})
}

// The requests to connect again are spread evenly over three quarters of the drain. No
// twelfth of that time has more than twice the mean.
func TestDrainIsSpread(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const agents, parts = 600, 12
		s := edgetest.Start(t, edgetest.Settings{})
		numbers := make([]int, agents)
		for i := range numbers {
			numbers[i] = i + 1
		}
		s.Register(numbers...)
		streams := make([]*edgetest.Stream, agents)
		for i := range streams {
			streams[i] = s.Connect(edgetest.Session{Agent: i + 1})
		}
		synctest.Wait()
		began := time.Now()
		asked := make(chan time.Duration, agents)
		for _, c := range streams {
			go func() {
				if resp, err := c.Recv(); err == nil && resp.GetReconnect() != nil {
					asked <- time.Since(began)
				}
				_ = c.CloseSend()
			}()
		}
		s.Stop()
		require.Len(t, asked, agents)
		var counts [parts]int
		for range agents {
			counts[min(parts-1, int((<-asked)*parts/(7500*time.Millisecond)))]++
		}
		for part, n := range counts {
			require.Less(t, n, 2*agents/parts, "part %d of %v", part, counts)
			require.Positive(t, n, "part %d of %v", part, counts)
		}
	})
}

func TestDrainEndsWhenAllHaveLeft(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{DrainTimeout: time.Hour}})
		s.Register(1)
		c := s.Connect(edgetest.Session{Agent: 1})
		began := time.Now()
		stopped := make(chan time.Duration, 1)
		go func() { s.Stop(); stopped <- time.Since(began) }()
		require.NotNil(t, c.Next().GetReconnect())
		asked := time.Since(began)
		require.LessOrEqual(t, asked, 45*time.Minute)
		time.Sleep(time.Minute)
		require.NoError(t, c.CloseSend())
		c.RequireEnd(codes.OK, "")
		require.Less(t, <-stopped, asked+time.Minute+3*time.Second)
	})
}

func TestHealth(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var s *edgetest.Service
		s = edgetest.Start(t, edgetest.Settings{Down: true, Coderd: coderdapi.Options{StoreReady: func(ctx context.Context) error {
			if err := s.Store.Err(); err != nil {
				return err
			}
			return s.Store.Ping(ctx)
		}}})
		check := func(service string) healthpb.HealthCheckResponse_ServingStatus {
			t.Helper()
			synctest.Wait()
			resp, err := healthpb.NewHealthClient(s.Conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			require.NoError(t, err)
			return resp.GetStatus()
		}
		for _, service := range []string{"", "agentstats.v1.AgentService", "agentstats.v1.CoderdService"} {
			require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, check(service))
		}
		require.Equal(t, healthpb.HealthCheckResponse_SERVING, check("agentstats.v1.AdminService"), "operators need no database")
		s.Store.SetDown(false)
		time.Sleep(time.Minute)
		for _, service := range []string{"", "agentstats.v1.AgentService", "agentstats.v1.CoderdService"} {
			require.Equal(t, healthpb.HealthCheckResponse_SERVING, check(service))
		}
		s.Store.SetDown(true)
		time.Sleep(2 * time.Second)
		require.Equal(t, healthpb.HealthCheckResponse_SERVING, check("agentstats.v1.AgentService"), "agents do not need it")
		require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, check("agentstats.v1.CoderdService"))
		s.Store.SetDown(false)
	})
}
