package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/postgrestest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Of replicas each says which one serves a series, with a link to it. Where two agents
// with equal labels report to one each, the series is doubled, and both are named.
func TestExplainOverReplicas(t *testing.T) {
	beside(t)
	database := postgrestest.Start(t).CreateDatabase(t)
	tokenFile, token := filepath.Join(t.TempDir(), "token"), uuid.NewString()
	require.NoError(t, os.WriteFile(tokenFile, []byte(token), 0o600))
	var services []*service
	for n := range 2 {
		services = append(services, newService(t, "--database-url", database, "--coderd-token-file", tokenFile, "--lease-duration", lease.String(),
			"--web-external-url", fmt.Sprintf("https://stats.example.com/%d", n)))
	}
	for _, s := range services {
		s.start(t) // one after the other: the second knows the page of the first at once
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	dial := func(replica int, options client.DialOptions) *grpc.ClientConn {
		options.Plaintext = true
		conn, err := client.Dial(services[replica].grpcAddr, options)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	var operators []pb.AdminServiceClient
	for n := range services {
		operators = append(operators, pb.NewAdminServiceClient(dial(n, client.DialOptions{Token: token})))
	}
	older, newer := registrationOf("ada", 1), registrationOf("ada", 2)
	newer.Workspace.Name = older.GetWorkspace().GetName()
	newer.CreatedAt = timestamppb.New(newer.GetCreatedAt().AsTime().Add(time.Second))
	_, err := pb.NewCoderdServiceClient(dial(0, client.DialOptions{Token: token})).RegisterAgents(ctx, &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{older, newer}})
	require.NoError(t, err)
	report := func(agent, replica int) {
		a, err := client.NewAgent(dial(replica, client.DialOptions{Token: tokenOf(agent)}), client.AgentOptions{})
		require.NoError(t, err)
		running.Go(func() { _ = a.Run(ctx) })
		a.Report(&pb.Stats{Metrics: []*pb.Stats_Metric{{Name: "my_metric", Type: pb.Stats_Metric_TYPE_GAUGE, Value: 1}}})
		require.NoError(t, a.Flush(ctx))
	}
	// explain asks a replica until it says so. What others do it knows within seconds.
	explain := func(replica int, is func(*pb.ExplainSeriesResponse) bool) {
		t.Helper()
		for {
			resp, err := operators[replica].ExplainSeries(ctx, &pb.ExplainSeriesRequest{Selector: `my_metric{username="ada",workspace_name="workspace-1"}`})
			require.NoError(t, err)
			if is(resp) {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("replica %d says: %v", replica, resp)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	// finds has any url if there is none.
	finds := func(cause, text, url string, about *pb.AgentRegistration) func(*pb.ExplainSeriesResponse) bool {
		return func(r *pb.ExplainSeriesResponse) bool {
			for _, f := range r.GetFindings() {
				if f.GetCause() == cause && (url == "" || f.GetUrl() == url) && f.GetAgentId() == uuid.UUID(about.GetId()).String() {
					require.Contains(t, f.GetText(), text)
					return true
				}
			}
			return false
		}
	}
	page := "https://stats.example.com/0/status/agents/" + uuid.UUID(older.GetId()).String()
	host, err := os.Hostname()
	require.NoError(t, err)

	report(1, 0)
	services[0].scrape(t, "/metrics")
	explain(0, func(r *pb.ExplainSeriesResponse) bool { return r.GetServedCount() == 1 })
	explain(1, finds("other_replica", "Agent ada/workspace-1.main has its session on replica "+host+" since ", page, older))

	report(2, 1)
	services[1].scrape(t, "/metrics")
	explain(0, finds("doubled", fmt.Sprintf("is served here, and agent %s with the same labels by replica ", uuid.UUID(newer.GetId())), "", older))
	explain(1, finds("doubled", "is served here", page, newer))
	explain(0, finds("other_replica", "", "", newer))
}
