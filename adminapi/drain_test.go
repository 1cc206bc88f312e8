package adminapi_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// A replica that drains asks its agents to go, and takes none, until that is undone.
func TestSetDraining(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1, 2)
		stays := s.Connect(edgetest.Session{Agent: 1})
		synctest.Wait()
		admin := pb.NewAdminServiceClient(s.Conn)
		_, err := admin.SetDraining(edgetest.As(t.Context(), edgetest.OperatorToken), &pb.SetDrainingRequest{Draining: true})
		edgetest.RequireCodeContains(t, err, codes.PermissionDenied, "read")

		for range 2 { // again changes nothing
			resp, err := admin.SetDraining(s.AsCoderd(), &pb.SetDrainingRequest{Draining: true})
			require.NoError(t, err)
			require.Equal(t, 1.0, resp.GetStreams())
		}
		require.True(t, s.Server.IsDraining())
		began := time.Now()
		require.NotNil(t, stays.Next().GetReconnect())
		require.LessOrEqual(t, time.Since(began), 7500*time.Millisecond)
		refused := s.Open(edgetest.As(t.Context(), edgetest.Token(2)))
		_ = refused.Send(edgetest.Hello(edgetest.Session{Agent: 2})) // an error if the stream has ended already
		refused.RequireEnd(codes.Unavailable, "the service is stopping; connect again elsewhere or later")
		stays.SendNext(edgetest.Metadata("k", "v"))
		stays.RequireDurable(1) // what it has it may still send

		_, err = admin.SetDraining(s.AsCoderd(), &pb.SetDrainingRequest{})
		require.NoError(t, err)
		s.Connect(edgetest.Session{Agent: 2})
		require.False(t, s.Server.IsDraining())
	})
}

// Who has not been asked yet stays, once that is undone.
func TestUndoneDrainAsksNobody(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		stays := s.Connect(edgetest.Session{Agent: 1})
		synctest.Wait()
		s.Server.SetDraining(true)
		s.Server.SetDraining(false)
		time.Sleep(time.Minute)
		stays.SendNext(edgetest.Metadata("k", "v"))
		stays.RequireDurable(1) // no please-reconnect before it
	})
}
