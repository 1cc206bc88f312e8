package agentapi_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// TestManyAgents has agents come, report and go at once, while coderd registers,
// lists and watches.
func TestManyAgents(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	const agents = 20
	var numbers []int
	for n := range agents {
		numbers = append(numbers, n+1)
	}
	s.Register(numbers...)
	ctx, cancel := context.WithCancel(s.AsCoderd())
	var watching, sessions sync.WaitGroup
	watching.Go(func() {
		w, err := s.Coderd().WatchMetadata(ctx, &pb.WatchMetadataRequest{AgentIds: [][]byte{edgetest.IDBytes(1), edgetest.IDBytes(2)}})
		require.NoError(t, err)
		for err == nil {
			_, err = w.Recv()
		}
		require.Equal(t, codes.Canceled, status.Code(err))
	})
	for _, n := range numbers {
		sessions.Go(func() {
			for session := range int64(3) {
				c := s.Connect(edgetest.Session{Agent: n, Instance: byte(n), Number: session + 1})
				for i := range 10 {
					c.SendNext(edgetest.Stats(edgetest.Gauge(fmt.Sprint("custom_", i), float64(i))))
					c.SendNext(edgetest.Metadata("k", fmt.Sprint(c.Sequence)))
				}
				for received := int64(0); received < c.Sequence; {
					received, _ = c.NextAck()
				}
				require.NoError(t, c.CloseSend())
				c.RequireEnd(codes.OK, "")
			}
		})
	}
	sessions.Go(func() {
		for range 20 {
			s.Register(numbers...)
			_, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
			require.NoError(t, err)
		}
	})
	sessions.Wait()
	cancel()
	watching.Wait()
	require.Len(t, s.Exposition("custom_9"), agents)
	s.Stop()
	for _, n := range numbers {
		require.Equal(t, []string{"k=59"}, s.StoredMetadata(n), "the last flush wrote the newest")
	}
}
