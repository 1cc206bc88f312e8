package agentapi_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// putMuch has so many agents have 16 KB of metadata each.
func (s *service) putMuch(agents int) (numbers []int) {
	for n := 1; n <= agents; n++ {
		numbers = append(numbers, n)
	}
	s.register(numbers...)
	var pairs []string
	for key := range 8 {
		pairs = append(pairs, fmt.Sprint("key", key), strings.Repeat("x", 2000))
	}
	for _, n := range numbers {
		s.request(n, meta(pairs...))
	}
	return numbers
}

// fixedWindows do not grow with what the other streams of the connection read.
var fixedWindows = []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(16 << 20)}

// Watchers that do not read hold no more than all of them may, and are ended; one that
// reads has its turn then.
func TestWatchersThatDoNotReadAreEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const limit = 1 << 20
		s := start(t, settings{
			server: grpcserver.Options{MaxMessageBytes: limit / 6, MaxAgentMessageBytes: limit / 6},
			coderd: coderdapi.Options{MaxWatchBytes: limit / 4, MaxWatchesBytes: limit},
			dial:   fixedWindows,
		})
		numbers := s.putMuch(100)
		time.Sleep(10 * time.Second)
		began := time.Now()
		var slow []watching
		for range 10 {
			slow = append(slow, s.watch(numbers...))
			synctest.Wait()
			require.LessOrEqual(t, s.memory("watches"), float64(limit))
		}
		require.Greater(t, s.memory("watches"), float64(limit/4))
		time.Sleep(31 * time.Second)
		require.GreaterOrEqual(t, s.counter("agentstatsd_grpc_limited_total", "slow_reader"), 4.0)

		good := s.watch(numbers...)
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
			require.Equal(t, codes.ResourceExhausted, codeOf(err), "%v", err)
			require.Regexp(t, `responses: want them read within 30s \(--grpc-send-timeout\), they were not|want at most 524288 bytes of metadata read at once, half of --max-watches-bytes, waited 1m0s for 131072 bytes`, err.Error())
			require.Equal(t, time.Second, retryDelay(t, err))
		}
		synctest.Wait()
		require.Less(t, s.memory("watches"), 60_000.0, "what the good one was sent")
		require.Equal(t, 10.0, s.counter("agentstatsd_grpc_limited_total", "slow_reader")+s.counter("agentstatsd_coderd_memory_refused_total", "metadata_reads"))
	})
}

// So are those that read a little from time to time.
func TestWatchersThatReadSlowlyAreEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{dial: fixedWindows})
		w := s.watch(s.putMuch(200)...)
		time.Sleep(10 * time.Second)
		began := time.Now()
		var err error
		for err == nil {
			_, err = w.Recv()
			time.Sleep(10 * time.Second)
		}
		requireCode(t, err, codes.ResourceExhausted, "responses: want them read within 30s (--grpc-send-timeout), they were not")
		require.Less(t, time.Since(began), 5*time.Minute)
	})
}

func TestWatchRemembersWithinItsLimit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{server: grpcserver.Options{MaxMessageBytes: 5000, MaxAgentMessageBytes: 5000}, coderd: coderdapi.Options{MaxWatchBytes: 10_000, MaxWatchesBytes: 30_000}})
		s.register(1, 2)
		_, err := s.watch(make20()...).Recv()
		requireCode(t, err, codes.ResourceExhausted, "agent_ids: want at most 5000 bytes in memory of a watch, half of --max-watch-bytes, got 5120: watch fewer agents at once")
		require.Equal(t, 1.0, s.counter("agentstatsd_coderd_memory_refused_total", "watches"))
		for range 3 { // each takes 3840 of half of 30,000
			w := s.watch(make20()[:15]...)
			w.requireSynced()
		}
		_, err = s.watch(make20()[:15]...).Recv()
		requireCode(t, err, codes.ResourceExhausted, "message: want at most 15000 bytes in memory of all watches under way (--max-watches-bytes), got 3840 more than the 11520 that there are; try again later, or with less at once")
	})
}

func make20() (numbers []int) {
	for n := range 20 {
		numbers = append(numbers, n+1)
	}
	return numbers
}

// What a reader did not take of a stream that ended lies in gRPC's memory: coderd may
// have as many such streams as watches, then the connection that has them is closed.
func TestUnreadStreamsOfCoderdAreBounded(t *testing.T) {
	s := start(t, settings{
		tcp:     true,
		server:  grpcserver.Options{SendTimeout: time.Second, MaxUnreadOfCoderd: 4},
		coderd:  coderdapi.Options{MaxWatches: 4},
		batcher: batcher.Options{BatchSize: 10, FlushInterval: 10 * time.Millisecond, MaxPending: 10_000},
	})
	numbers := s.putMuch(20)
	req := &pb.WatchMetadataRequest{}
	for _, n := range numbers {
		req.AgentIds = append(req.AgentIds, bid(n))
	}
	for {
		resp, err := s.coderd().GetMetadata(s.asCoderd(), &pb.GetMetadataRequest{AgentIds: req.GetAgentIds()})
		require.NoError(t, err)
		if len(resp.GetAgents()) == 20 {
			break
		}
	}
	message, err := proto.Marshal(req)
	require.NoError(t, err)
	raw := s.rawClient(t)
	watch := func() error {
		id, err := raw.call("/agentstats.v1.CoderdService/WatchMetadata", "authorization", "Bearer "+coderdToken)
		if err != nil {
			return err
		}
		return raw.framer.WriteData(id, true, append(sizeOnly(uint32(len(message))), message...))
	}
	deadline := time.After(30 * time.Second)
	closed := false
	for n := 1.0; !closed && watch() == nil; n++ {
		for !closed && limited(s, "slow_reader") < n { // it has ended
			select {
			case <-raw.closed:
				closed = true
			case <-deadline:
				require.FailNow(t, "neither ended nor disconnected")
			default:
			}
		}
	}
	require.GreaterOrEqual(t, limited(s, "slow_reader"), 4.0)
	require.GreaterOrEqual(t, limited(s, "unread_streams"), 1.0)

	good, err := s.coderd().WatchMetadata(s.asCoderd(), req) // of another connection
	require.NoError(t, err)
	for synced := false; !synced; {
		m, err := good.Recv()
		require.NoError(t, err)
		synced = m.GetSynced()
	}
}

// A watcher of agents that does not read is ended too.
func TestWatchersOfAgentsThatDoNotReadAreEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := start(t, settings{dial: fixedWindows})
		for part := range 10 {
			req := &pb.RegisterAgentsRequest{}
			for n := range 100 {
				reg := registration(1 + 100*part + n)
				for i := range 20 {
					reg.Apps = append(reg.Apps, &pb.App{Id: bid(60_000 + i), Health: pb.AppHealth_APP_HEALTH_HEALTHY})
				}
				req.Agents = append(req.Agents, reg)
			}
			_, err := s.coderd().RegisterAgents(s.asCoderd(), req)
			require.NoError(t, err)
		}
		began := time.Now()
		slow, err := s.coderd().WatchAgents(s.asCoderd(), &pb.WatchAgentsRequest{})
		require.NoError(t, err)
		good, err := s.coderd().WatchAgents(s.asCoderd(), &pb.WatchAgentsRequest{})
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
		require.Equal(t, 1.0, s.counter("agentstatsd_grpc_limited_total", "slow_reader"))
		synctest.Wait()
		require.Equal(t, 1.0, s.counter("agentstatsd_watches", "agents"), "the good one")
		for err == nil {
			_, err = slow.Recv()
		}
		requireCode(t, err, codes.ResourceExhausted, "responses: want them read within 30s (--grpc-send-timeout), they were not")
	})
}
