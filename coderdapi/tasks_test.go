package coderdapi_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestAcquireTasks(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		acquire := func(holder int, d time.Duration, names ...string) []string {
			t.Helper()
			resp, err := s.Coderd().AcquireTasks(s.AsCoderd(), &pb.AcquireTasksRequest{Names: names, HolderId: edgetest.IDBytes(holder), Duration: durationpb.New(d)})
			require.NoError(t, err)
			return resp.GetGranted()
		}
		require.Equal(t, []string{"scrape", "sync"}, acquire(1, time.Minute, "sync", "scrape", "sync"))
		require.Empty(t, acquire(2, time.Minute, "sync"))
		time.Sleep(time.Minute)
		require.Equal(t, []string{"sync"}, acquire(2, time.Minute, "sync"), "it has expired")
		require.Equal(t, []string{"scrape"}, acquire(1, time.Minute, "sync", "scrape"))
		require.Empty(t, acquire(2, 0, "sync"))
		require.Equal(t, []string{"sync"}, acquire(1, time.Minute, "sync"), "it was given back")
		resp, err := s.Coderd().AcquireTasks(s.AsCoderd(), &pb.AcquireTasksRequest{
			Names: []string{"sync"}, HolderId: edgetest.IDBytes(2), Duration: durationpb.New(time.Minute), CountedPrefix: "s",
		})
		require.NoError(t, err)
		require.Empty(t, resp.GetGranted())
		require.Equal(t, uint32(2), resp.GetCounted())

		for want, req := range map[string]*pb.AcquireTasksRequest{
			"names: want 1 to 128, got 0":                               {},
			"names: want 1 to 128, got 129":                             {Names: make([]string, 129)},
			"names[1]: want 1 to 128 bytes, got 129":                    {Names: []string{"a", strings.Repeat("x", 129)}},
			"counted_prefix: want at most 128 bytes, got 129":           {Names: []string{"a"}, CountedPrefix: strings.Repeat("x", 129)},
			"holder_id: want 16 bytes, got 0":                           {Names: []string{"a"}},
			"duration: want 0 s, or 1s to 1h0m0s, got 1ms":              {Names: []string{"a"}, HolderId: edgetest.IDBytes(1), Duration: durationpb.New(time.Millisecond)},
			"duration: want 0 s, or 1s to 1h0m0s, got 1h0m0.000000001s": {Names: []string{"a"}, HolderId: edgetest.IDBytes(1), Duration: durationpb.New(time.Hour + 1)},
		} {
			_, err := s.Coderd().AcquireTasks(s.AsCoderd(), req)
			edgetest.RequireCode(t, err, codes.InvalidArgument, want)
		}
	})
}
