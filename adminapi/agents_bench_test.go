package adminapi_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func BenchmarkSearchAgents(b *testing.B) {
	for _, agents := range []int{10_000, 200_000} {
		s := edgetest.Start(b, edgetest.Settings{Fleet: fleet.Options{MaxAgents: agents, MaxBytes: 1 << 30}})
		set := fleet.Set{}
		for n := range agents {
			set.Agents = append(set.Agents, agent.Registration{
				ID: uuid.New(), Name: "main", CreatedAt: edgetest.Day,
				Workspace: agent.Workspace{
					ID: uuid.New(), Name: fmt.Sprint("workspace-", n%3), OwnerUsername: fmt.Sprint("developer-", n/3),
					Template: agent.Template{Name: fmt.Sprint("template-", n%50), Version: "v1"},
				},
			})
		}
		registered, err := s.Fleet.Register(b.Context(), set)
		require.NoError(b, err)
		require.Empty(b, registered.Refused)
		first, err := s.Admin.SearchAgents(b.Context(), &pb.SearchAgentsRequest{PageSize: 1000})
		require.NoError(b, err)
		require.Len(b, first.GetAgents(), 1000)
		for _, c := range []struct {
			name string
			req  *pb.SearchAgentsRequest
		}{
			{"first page", &pb.SearchAgentsRequest{}},
			{"a page of 1000", &pb.SearchAgentsRequest{PageSize: 1000, PageToken: first.GetNextPageToken()}},
			{"text", &pb.SearchAgentsRequest{Query: "oper-1234"}},
			{"filters", &pb.SearchAgentsRequest{Template: "template-7", Status: "timeout"}},
		} {
			b.Run(fmt.Sprintf("%s of %d", c.name, agents), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.Admin.SearchAgents(b.Context(), c.req); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
