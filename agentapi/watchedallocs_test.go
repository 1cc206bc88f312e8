//go:build !race

package agentapi_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Without a subscription a report costs no allocation for watchers. With one it costs
// an allocation, of its sum, if a report of the agent is pending already.
func TestWatchedReportAllocations(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	session, err := s.Fleet.Connect(t.Context(), edgetest.ID(1), fleet.Hello{Instance: agent.Instance(uuid.New())})
	require.NoError(t, err)
	var requests [1024]mem.BufferSlice
	for i := range requests {
		data, err := proto.Marshal(&pb.ConnectRequest{
			Sequence: int64(i + 1),
			Stats:    &pb.Stats{RxBytes: 1, ConnectionCount: 1, ConnectionMedianLatencyMs: 2, SessionCounts: map[string]int64{"ssh": 1}},
		})
		require.NoError(t, err)
		requests[i] = mem.BufferSlice{mem.SliceBuffer(data)}
	}
	in := agentapi.NewIngester()
	sequence := int64(0)
	take := func(r fleet.Request) {
		refused, err := in.Take(s.AgentService, r, requests[sequence%int64(len(requests))])
		if err != nil || len(refused) > 0 {
			t.Fatal(refused, err)
		}
	}
	// The least of several: the service's own work goes on meanwhile.
	perReport := func() float64 {
		least := math.Inf(1)
		for range 20 {
			least = min(least, testing.AllocsPerRun(50, func() {
				sequence++
				if err := session.Receive(time.Now(), sequence, take); err != nil {
					t.Fatal(err)
				}
			}))
		}
		return least
	}
	require.False(t, s.Reports.Wanted())
	nobody := perReport()
	_, err = s.Store.OpenSubscription(t.Context(), agent.SubscriptionOpening{Name: "a", Stream: uuid.New(), Incarnation: 1, Max: 1, Lease: time.Hour})
	require.NoError(t, err)
	require.NoError(t, s.Reports.Load(t.Context()))
	require.True(t, s.Reports.Wanted())
	watched := perReport()
	require.Zero(t, nobody)
	require.LessOrEqual(t, watched, 1.0)
}
