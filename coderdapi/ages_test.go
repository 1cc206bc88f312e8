package coderdapi_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// What coderd did since it read a set, or since a relay got a registration, is not undone
// by it.
func TestAges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		kept := func(n int, age time.Duration) *pb.AgentRegistration {
			r := edgetest.Registration(n)
			r.Age = durationpb.New(age)
			return r
		}
		sync := func(age time.Duration, agents ...*pb.AgentRegistration) (*pb.SyncAgentsResponse, error) {
			c, err := s.Coderd().SyncAgents(s.AsCoderd())
			require.NoError(t, err)
			require.NoError(t, c.Send(&pb.SyncAgentsRequest{Agents: agents}))
			require.NoError(t, c.Send(&pb.SyncAgentsRequest{Complete: true, ReadAge: durationpb.New(age)}))
			return c.CloseAndRecv()
		}
		_, err := sync(-1)
		edgetest.RequireCode(t, err, codes.InvalidArgument, "read_age: want at least 0 s, got 0 s and -1 ns")

		s.Register(1, 2, 3, 4)
		time.Sleep(time.Minute)
		s.Register(5)
		_, err = s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(3), edgetest.IDBytes(4)}})
		require.NoError(t, err)
		time.Sleep(10 * time.Second)
		// The age of the set, but for one registration with an age of its own.
		resp, err := sync(20*time.Second, edgetest.Registration(1), edgetest.Registration(3), kept(4, 5*time.Second))
		require.NoError(t, err)
		require.True(t, proto.Equal(&pb.SyncAgentsResponse{Registered: 2, Deregistered: 1}, resp), "got %v", resp)
		s.RequireAgents(1, 4, 5)

		register := func(agents ...*pb.AgentRegistration) *pb.RegisterAgentsResponse {
			resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: agents})
			require.NoError(t, err)
			return resp
		}
		longest := kept(3, 0)
		longest.Age.Seconds = math.MaxInt64 / int64(time.Second)
		for _, old := range []*pb.AgentRegistration{kept(3, 10*time.Second), longest, kept(3, 9*time.Second+time.Millisecond)} {
			require.Equal(t, [][]byte{edgetest.IDBytes(3)}, register(old).GetStaleIds(), "%v", old.GetAge())
		}
		s.RequireAgents(1, 4, 5)
		require.Empty(t, register(kept(3, 8*time.Second), kept(1, time.Hour), kept(6, time.Hour)).GetStaleIds())
		s.RequireAgents(1, 3, 4, 5, 6)
	})
}
