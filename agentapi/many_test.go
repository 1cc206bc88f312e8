package agentapi_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// TestManyAgents has agents come, report and go at once, while coderd registers,
// lists and watches.
func TestManyAgents(t *testing.T) {
	s := start(t, settings{})
	const agents = 20
	var numbers []int
	for n := range agents {
		numbers = append(numbers, n+1)
	}
	s.register(numbers...)
	ctx, cancel := context.WithCancel(s.asCoderd())
	var watching, sessions sync.WaitGroup
	watching.Go(func() {
		w, err := s.coderd().WatchMetadata(ctx, &pb.WatchMetadataRequest{AgentIds: [][]byte{bid(1), bid(2)}})
		require.NoError(t, err)
		for err == nil {
			_, err = w.Recv()
		}
		require.Equal(t, codes.Canceled, status.Code(err))
	})
	for _, n := range numbers {
		sessions.Go(func() {
			for session := range int64(3) {
				c := s.connect(n, byte(n), session+1)
				for i := range 10 {
					c.send(stats(gauge(fmt.Sprint("custom_", i), float64(i))))
					c.send(meta("k", fmt.Sprint(c.sequence)))
				}
				for received := int64(0); received < c.sequence; {
					received, _ = c.ack()
				}
				require.NoError(t, c.CloseSend())
				c.requireEnd(codes.OK, "")
			}
		})
	}
	sessions.Go(func() {
		for range 20 {
			s.register(numbers...)
			_, err := s.coderd().ListAgents(s.asCoderd(), &pb.ListAgentsRequest{})
			require.NoError(t, err)
		}
	})
	sessions.Wait()
	cancel()
	watching.Wait()
	require.Len(t, s.exposition("custom_9"), agents)
	s.stop()
	for _, n := range numbers {
		require.Equal(t, []string{"k=59"}, s.stored(n), "the last flush wrote the newest")
	}
}
