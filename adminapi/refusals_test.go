package adminapi_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// An operator's token is told who was refused what, and why. An agent's is not.
func TestListRefusals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		s.Request(1, edgetest.Stats(edgetest.Gauge("1bad", 1)))

		admin := pb.NewAdminServiceClient(s.Conn)
		resp, err := admin.ListRefusals(edgetest.As(t.Context(), edgetest.OperatorToken), &pb.ListRefusalsRequest{})
		require.NoError(t, err)
		require.Len(t, resp.GetAgents(), 1)
		refused := resp.GetAgents()[0].GetRefused()
		require.Len(t, refused, 1)
		require.Equal(t, []string{"1bad"}, refused[0].GetNames())
		require.Equal(t, 1.0, refused[0].GetCount())
		require.Equal(t, "template", resp.GetSums()[0].GetBy())
		require.Equal(t, 1.0, resp.GetSums()[0].GetSums()[0].GetItems())

		for limit, want := range map[int32]codes.Code{1: codes.OK, 1000: codes.OK, 1001: codes.InvalidArgument, -1: codes.InvalidArgument} {
			_, err = admin.ListRefusals(edgetest.As(t.Context(), edgetest.CoderdToken), &pb.ListRefusalsRequest{Limit: limit})
			require.Equal(t, want, status.Code(err), limit)
		}
		_, err = admin.ListRefusals(edgetest.As(t.Context(), edgetest.Token(1)), &pb.ListRefusalsRequest{})
		require.Equal(t, codes.PermissionDenied, status.Code(err))
	})
}
