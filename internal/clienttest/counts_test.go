package clienttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// reporter is an agent that makes up counts, and the sum of them.
type reporter struct {
	mu     sync.Mutex
	random *rand.Rand
	sum    fakeCounts
	stats  *agentstatsv1.Stats
}

// next returns a report, for Collect the same message each time.
func (r *reporter) next(stats *agentstatsv1.Stats) *agentstatsv1.Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	stats.RxPackets, stats.RxBytes = r.random.Int64N(1000), r.random.Int64N(1<<20)
	stats.TxPackets, stats.TxBytes = r.random.Int64N(1000), r.random.Int64N(1<<20)
	stats.ConnectionCount = r.random.Int64N(3)
	stats.Metrics = []*agentstatsv1.Stats_Metric{{Name: "m", Value: 1}}
	if r.random.IntN(5) == 0 {
		stats.Reset()
	}
	r.sum.add(countsOf(stats))
	return stats
}

// Over a thousand cuts, moves between two replicas, kills of them and absences of the
// database, each count is added to the sums once.
func TestCountsAreCountedOnce(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { countOnce(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func countOnce(t *testing.T, random *rand.Rand) {
	sums := &fakeSums{}
	var replicas [2]*fakeService
	var networks [2]*network
	for i := range replicas {
		f := newFakeService()
		f.sums, f.lazy = sums, random.IntN(2) == 0
		f.settings.ReportInterval = durationpb.New(time.Second)
		replicas[i] = f
		networks[i] = newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterAgentServiceServer(s, f) })
		defer networks[i].stop()
	}
	var mu sync.Mutex
	at := 0
	dial := func() (*grpc.ClientConn, error) {
		mu.Lock()
		defer mu.Unlock()
		return grpc.NewClient("passthrough:///replica", networks[at].plaintext()...)
	}
	move := func() {
		mu.Lock()
		defer mu.Unlock()
		at = 1 - at
	}
	made := &reporter{random: rand.New(rand.NewPCG(random.Uint64(), 2)), stats: &agentstatsv1.Stats{}}
	opts := client.AgentOptions{Backoff: client.Backoff{Max: 2 * time.Second}}
	collects := random.IntN(2) == 0
	if collects {
		opts.Collect = func(context.Context) *agentstatsv1.Stats { return made.next(made.stats) }
	}
	agent, err := client.NewDialingAgent(dial, opts)
	require.NoError(t, err)
	stop := run(t.Context(), agent.Run)

	away := 0 // events until the database is back
	for range 1000 {
		time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
		if !collects {
			agent.Report(made.next(&agentstatsv1.Stats{}))
		}
		if random.IntN(3) == 0 {
			require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: fmt.Sprint(random.Int())}))
		}
		away--
		replica, n := replicas[random.IntN(2)], networks[random.IntN(2)]
		switch random.IntN(9) {
		case 0:
			n.cut()
		case 1:
			move()
			n.cut()
		case 2:
			move()
			replica.respond(&agentstatsv1.ConnectResponse{Reconnect: &agentstatsv1.Reconnect{}})
		case 3:
			replica.kill(codes.Unavailable)
		case 4:
			replica.locked(func() { replica.fault, replica.faultCode = fault(1+random.IntN(3)), codes.Unavailable })
		case 5:
			i := random.IntN(2)
			networks[i].stop()
			replicas[i].forget()
			time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
			networks[i].start()
		case 6:
			if random.IntN(10) == 0 {
				away = 40
			}
		default:
			if away <= 0 {
				replica.flush()
			}
		}
	}

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	flushing := run(ctx, func(ctx context.Context) error {
		for ctx.Err() == nil {
			for _, replica := range replicas {
				replica.flush()
			}
			time.Sleep(time.Second)
		}
		return nil
	})
	require.NoError(t, errors.Join(agent.Close(ctx), stop(), flushing()))
	synctest.Wait()
	sums.mu.Lock()
	defer sums.mu.Unlock()
	require.Equal(t, made.sum, sums.sums)
	require.Empty(t, sums.changed, "a report is sent again as it was")
	require.Greater(t, sums.most, 1)
	for _, replica := range replicas {
		replica.locked(func() { require.Empty(t, replica.violations) })
	}
	counts := agent.Status().Counts
	require.Equal(t, counts.Reports, counts.ReportsReceived)
	require.Greater(t, counts.Sessions, int64(200))
}
