package coderdapi_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Watchers that do not read take no more memory than all of them may, and are ended; one that
// reads is served then.
func TestWatchersThatDoNotReadAreEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const limit = 1 << 20
		s := edgetest.Start(t, edgetest.Settings{
			Server: grpcserver.Options{MaxMessageBytes: limit / 6, MaxAgentMessageBytes: limit / 6},
			Coderd: coderdapi.Options{MaxWatchBytes: limit / 4, MaxWatchesBytes: limit},
			Dial:   edgetest.FixedWindows,
		})
		numbers := s.StoreMuch(100)
		time.Sleep(10 * time.Second)
		began := time.Now()
		var slow []watching
		for range 10 {
			slow = append(slow, watchMetadata(s, numbers...))
			synctest.Wait()
			require.LessOrEqual(t, callsMemory(s, "watches"), float64(limit))
		}
		require.Greater(t, callsMemory(s, "watches"), float64(limit/4))
		time.Sleep(31 * time.Second)
		require.GreaterOrEqual(t, s.Counter("agentstatsd_grpc_limited_total", "slow_reader"), 4.0)

		good := watchMetadata(s, numbers...)
		values := 0
		for {
			got, synced := good.next()
			if synced {
				break
			}
			values += len(got)
		}
		require.Equal(t, 800, values)
		require.LessOrEqual(t, time.Since(began), 2*time.Minute)

		time.Sleep(5 * time.Minute)
		for _, w := range slow {
			err := error(nil)
			for err == nil {
				_, err = w.Recv()
			}
			require.Equal(t, codes.ResourceExhausted, status.Code(err), "%v", err)
			require.Regexp(t, `responses: want them read within 30s \(--grpc-send-timeout\), they were not|want at most 524288 bytes of metadata read at once, half of --max-watches-bytes, waited 1m0s for 131072 bytes`, err.Error())
			require.Equal(t, time.Second, edgetest.RetryDelay(t, err))
		}
		synctest.Wait()
		require.Less(t, callsMemory(s, "watches"), 60_000.0, "what the good one was sent")
		require.Equal(t, 10.0, s.Counter("agentstatsd_grpc_limited_total", "slow_reader")+s.Counter("agentstatsd_coderd_memory_refused_total", "metadata_reads"))
	})
}

func TestWatchRemembersWithinItsLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxMessageBytes: 5000, MaxAgentMessageBytes: 5000}, Coderd: coderdapi.Options{MaxWatchBytes: 10_000, MaxWatchesBytes: 30_000}})
		s.Register(1, 2)
		_, err := watchMetadata(s, make20()...).Recv()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "agent_ids: want at most 5000 bytes in memory of a watch, half of --max-watch-bytes, got 5120: watch fewer agents at once")
		require.Equal(t, 1.0, s.Counter("agentstatsd_coderd_memory_refused_total", "watches"))
		for range 3 { // each takes 3840 of half of 30,000
			w := watchMetadata(s, make20()[:15]...)
			w.requireSynced()
		}
		_, err = watchMetadata(s, make20()[:15]...).Recv()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "message: want at most 15000 bytes in memory of all watches under way (--max-watches-bytes), got 3840 more than the 11520 that there are; try again later, or with less at once")
	})
}

func make20() (numbers []int) {
	for n := range 20 {
		numbers = append(numbers, n+1)
	}
	return numbers
}

// A watcher of agents that does not read is ended too.
func TestWatchersOfAgentsThatDoNotReadAreEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Dial: edgetest.FixedWindows})
		for part := range 10 {
			req := &pb.RegisterAgentsRequest{}
			for n := range 100 {
				reg := edgetest.Registration(1 + 100*part + n)
				for i := range 20 {
					reg.Apps = append(reg.Apps, &pb.App{Id: edgetest.IDBytes(60_000 + i), Health: pb.AppHealth_APP_HEALTH_HEALTHY})
				}
				req.Agents = append(req.Agents, reg)
			}
			_, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
			require.NoError(t, err)
		}
		began := time.Now()
		slow, err := s.Coderd().WatchAgents(s.AsCoderd(), &pb.WatchAgentsRequest{})
		require.NoError(t, err)
		good, err := s.Coderd().WatchAgents(s.AsCoderd(), &pb.WatchAgentsRequest{})
		require.NoError(t, err)
		agents := 0
		for {
			m, err := good.Recv()
			require.NoError(t, err)
			if agents += len(m.GetAgents()); m.GetSynced() {
				break
			}
		}
		require.Equal(t, 1000, agents)
		time.Sleep(31*time.Second - time.Since(began))
		require.Equal(t, 1.0, s.Counter("agentstatsd_grpc_limited_total", "slow_reader"))
		synctest.Wait()
		require.Equal(t, 1.0, s.Counter("agentstatsd_watches", "agents"), "the good one")
		for err == nil {
			_, err = slow.Recv()
		}
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "responses: want them read within 30s (--grpc-send-timeout), they were not")
	})
}
