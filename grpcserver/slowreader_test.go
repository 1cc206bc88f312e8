package grpcserver_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Watchers that read a little from time to time are ended as those that do not read.
func TestWatchersThatReadSlowlyAreEnded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Dial: edgetest.FixedWindows})
		numbers := s.StoreMuch(200)
		w, err := s.Coderd().WatchMetadata(s.AsCoderd(), &pb.WatchMetadataRequest{AgentIds: edgetest.IDsBytes(numbers...)})
		require.NoError(t, err)
		time.Sleep(10 * time.Second)
		began := time.Now()
		for err == nil {
			_, err = w.Recv()
			time.Sleep(10 * time.Second)
		}
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "responses: want them read within 30s (--grpc-send-timeout), they were not")
		require.Less(t, time.Since(began), 5*time.Minute)
	})
}
