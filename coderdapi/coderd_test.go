package coderdapi_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestRegistrationsAreValidated(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	long := strings.Repeat("x", 257)
	refusals := 0
	for _, c := range []struct {
		want   string
		change func(*pb.AgentRegistration)
	}{
		{"id: want 16 bytes, got 0", func(r *pb.AgentRegistration) { r.Id = nil }},
		{"id: want a UUID that is not zero", func(r *pb.AgentRegistration) { r.Id = make([]byte, 16) }},
		{"id: want each agent once", func(r *pb.AgentRegistration) { r.Id = edgetest.IDBytes(1) }},
		{"name: want 1 to 64 bytes, got 0", func(r *pb.AgentRegistration) { r.Name = "" }},
		{"name: want 1 to 64 bytes, got 257", func(r *pb.AgentRegistration) { r.Name = long }},
		{"name: want no NUL in it", func(r *pb.AgentRegistration) { r.Name = "a\x00" }},
		{"created_at: want it, got none", func(r *pb.AgentRegistration) { r.CreatedAt = nil }},
		{"created_at: want a time from 1970 to 2262, got 99999999999 s and 0 ns since 1970", func(r *pb.AgentRegistration) { r.CreatedAt = &timestamppb.Timestamp{Seconds: 99999999999} }},
		{"connection_timeout: want at least 0 s, got 0 s and -1 ns", func(r *pb.AgentRegistration) { r.ConnectionTimeout = durationpb.New(-1) }},
		{"token_sha256: want 32 bytes or none, got 5", func(r *pb.AgentRegistration) { r.TokenSha256 = []byte("short") }},
		{"token_sha256: want 32 bytes or none, got 33", func(r *pb.AgentRegistration) { r.TokenSha256 = make([]byte, 33) }},
		{"token_sha256: want a hash, or none at all, got 32 bytes of 0", func(r *pb.AgentRegistration) { r.TokenSha256 = make([]byte, 32) }},
		{"token_sha256: want one of its own, got that of agent " + edgetest.ID(1).String(), func(r *pb.AgentRegistration) { r.TokenSha256 = edgetest.TokenHash(edgetest.Token(1)) }},
		{"workspace: want it, got none", func(r *pb.AgentRegistration) { r.Workspace = nil }},
		{"workspace.id: want 16 bytes, got 0", func(r *pb.AgentRegistration) { r.Workspace.Id = nil }},
		{"workspace.name: want 1 to 256 bytes, got 257", func(r *pb.AgentRegistration) { r.Workspace.Name = long }},
		{"workspace.owner_id: want 16 bytes, got 3", func(r *pb.AgentRegistration) { r.Workspace.OwnerId = []byte("abc") }},
		{"workspace.owner_username: want 1 to 256 bytes, got 0", func(r *pb.AgentRegistration) { r.Workspace.OwnerUsername = "" }},
		{"workspace.template: want it, got none", func(r *pb.AgentRegistration) { r.Workspace.Template = nil }},
		{"workspace.template.id: want 16 bytes, got 3", func(r *pb.AgentRegistration) { r.Workspace.Template.Id = []byte("abc") }},
		{"workspace.template.name: want 1 to 256 bytes, got 0", func(r *pb.AgentRegistration) { r.Workspace.Template.Name = "" }},
		{"workspace.template.version: want at most 256 bytes, got 257", func(r *pb.AgentRegistration) { r.Workspace.Template.Version = long }},
		{"workspace.organization_name: want at most 256 bytes, got 257", func(r *pb.AgentRegistration) { r.Workspace.OrganizationName = long }},
		{"workspace.build.id: want 16 bytes, got 0", func(r *pb.AgentRegistration) { r.Workspace.Build.Id = nil }},
		{"workspace.build.created_at: want it, got none", func(r *pb.AgentRegistration) { r.Workspace.Build.CreatedAt = nil }},
		{"workspace.build.transition: unknown transition 9", func(r *pb.AgentRegistration) { r.Workspace.Build.Transition = 9 }},
		{"apps: want at most 256, got 257", func(r *pb.AgentRegistration) { r.Apps = make([]*pb.App, 257) }},
		{"apps[0].id: want 16 bytes, got 0", func(r *pb.AgentRegistration) { r.Apps[0].Id = nil }},
		{"apps[1].id: want each app once, got " + edgetest.ID(50_002).String() + " again", func(r *pb.AgentRegistration) { r.Apps = append(r.Apps, r.Apps[0]) }},
		{"apps[0].slug: want at most 128 bytes, got 257", func(r *pb.AgentRegistration) { r.Apps[0].Slug = long }},
		{"apps[0].display_name: want at most 256 bytes, got 257", func(r *pb.AgentRegistration) { r.Apps[0].DisplayName = long }},
		{"apps[0].health: unknown health 0", func(r *pb.AgentRegistration) { r.Apps[0].Health = 0 }},
		{"metadata_keys: want at most 256 (--metadata-max-declared-keys), got 257", func(r *pb.AgentRegistration) { r.MetadataKeys = make([]string, 257) }},
		{": want at most 65536 bytes (--max-registration-bytes), got 70430", func(r *pb.AgentRegistration) {
			r.MetadataKeys = nil
			for range 70 {
				r.MetadataKeys = append(r.MetadataKeys, strings.Repeat("k", 1000))
			}
		}},
		{"metadata_keys[1]: want 1 to 1024 bytes, got 0", func(r *pb.AgentRegistration) { r.MetadataKeys = []string{"a", ""} }},
		{"parent_id: want 16 bytes, got 3", func(r *pb.AgentRegistration) { r.ParentId = []byte("abc") }},
		{"observed.at: want it, got none", func(r *pb.AgentRegistration) { r.Observed = &pb.Observation{} }},
		{"observed.status: unknown status 0", func(r *pb.AgentRegistration) { r.Observed = &pb.Observation{At: timestamppb.Now()} }},
		{"observed.lifecycle.state: unknown lifecycle state 99", func(r *pb.AgentRegistration) {
			r.Observed = &pb.Observation{At: timestamppb.Now(), Status: pb.AgentStatus_AGENT_STATUS_CONNECTED, Lifecycle: &pb.Lifecycle{State: 99}}
		}},
		{"observed.network.preferred_region_id: want at least 0, got -1", func(r *pb.AgentRegistration) {
			r.Observed = &pb.Observation{At: timestamppb.Now(), Status: pb.AgentStatus_AGENT_STATUS_CONNECTED, Network: &pb.Network{PreferredRegionId: -1}}
		}},
		{"age: want at least 0 s, got 0 s and -1 ns", func(r *pb.AgentRegistration) { r.Age = durationpb.New(-1) }},
	} {
		t.Run(c.want, func(t *testing.T) {
			refusals++
			bad := edgetest.Registration(2)
			c.change(bad)
			for i := range bad.Apps {
				if bad.Apps[i] == nil {
					bad.Apps[i] = &pb.App{}
				}
			}
			resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{edgetest.Registration(1), bad}})
			require.NoError(t, err)
			require.Equal(t, int64(1), resp.GetRefusedCount())
			refused := resp.GetRefused()[0]
			require.Equal(t, c.want, refused.GetField()+": "+refused.GetMessage())
			if len(bad.GetId()) == 16 && bad.GetId()[15] != 0 {
				require.Equal(t, bad.GetId(), refused.GetAgentId())
			} else {
				require.Nil(t, refused.GetAgentId())
			}
			if len(bad.GetWorkspace().GetId()) == 16 {
				require.Equal(t, bad.GetWorkspace().GetId(), refused.GetWorkspaceId())
			} else {
				require.Nil(t, refused.GetWorkspaceId())
			}
			s.RequireAgents(1)
		})
	}
	for want, workspaces := range map[string][]*pb.Workspace{
		"id: want 16 bytes, got 0":     {{}},
		"id: want each workspace once": {edgetest.Workspace(1), edgetest.Workspace(1)},
	} {
		resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Workspaces: workspaces})
		require.NoError(t, err)
		require.Equal(t, int64(1), resp.GetRefusedCount())
		require.Equal(t, want, resp.GetRefused()[0].GetField()+": "+resp.GetRefused()[0].GetMessage())
		require.Nil(t, resp.GetRefused()[0].GetAgentId())
	}
	require.Equal(t, float64(refusals+2), s.Counter("agentstatsd_registrations_total", "refused"))
	for want, req := range map[string]*pb.RegisterAgentsRequest{
		"agents: want at most 10000, got 10001":     {Agents: make([]*pb.AgentRegistration, 10_001)},
		"workspaces: want at most 10000, got 10001": {Workspaces: make([]*pb.Workspace, 10_001)},
	} {
		for i := range req.Agents {
			req.Agents[i] = &pb.AgentRegistration{}
		}
		if len(req.Workspaces) > 2 {
			for i := range req.Workspaces {
				req.Workspaces[i] = &pb.Workspace{}
			}
		}
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
		edgetest.RequireCode(t, err, codes.InvalidArgument, want)
	}
	for want, req := range map[string]*pb.DeregisterAgentsRequest{
		"agent_ids[1]: want 16 bytes, got 1":           {AgentIds: [][]byte{edgetest.IDBytes(1), []byte("x")}},
		"workspace_ids[0]: want 16 bytes, got 1":       {WorkspaceIds: [][]byte{[]byte("x")}},
		"agent_ids: want at most 10000, got 10001":     {AgentIds: make([][]byte, 10_001)},
		"workspace_ids: want at most 10000, got 10001": {WorkspaceIds: make([][]byte, 10_001)},
	} {
		_, err := s.Coderd().DeregisterAgents(s.AsCoderd(), req)
		edgetest.RequireCode(t, err, codes.InvalidArgument, want)
	}
	s.RequireAgents(1)
}

// Clocks may differ, but not by years: the newest build of its labels is served.
func TestRegistrationsAhead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		for field, of := range map[string]func(*pb.AgentRegistration) **timestamppb.Timestamp{
			"created_at":                 func(r *pb.AgentRegistration) **timestamppb.Timestamp { return &r.CreatedAt },
			"workspace.build.created_at": func(r *pb.AgentRegistration) **timestamppb.Timestamp { return &r.Workspace.Build.CreatedAt },
		} {
			r := edgetest.Registration(1)
			*of(r) = timestamppb.New(time.Now().Add(24*time.Hour + time.Second))
			resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{r}})
			require.NoError(t, err)
			require.Equal(t, field, resp.GetRefused()[0].GetField())
			require.Equal(t, "want at most 24h0m0s after the service's clock (2000-01-01T00:00:00Z), got 2000-01-02T00:00:01Z", resp.GetRefused()[0].GetMessage())
			*of(r) = timestamppb.New(time.Now().Add(24 * time.Hour))
			_, err = s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{r}})
			require.NoError(t, err)
			_, err = s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
			require.NoError(t, err)
		}
		ws := edgetest.Workspace(1)
		ws.Build.CreatedAt = timestamppb.New(time.Now().Add(10 * 365 * 24 * time.Hour))
		resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Workspaces: []*pb.Workspace{ws}})
		require.NoError(t, err)
		require.Equal(t, "build.created_at", resp.GetRefused()[0].GetField())
		require.Equal(t, "want at most 24h0m0s after the service's clock (2000-01-01T00:00:00Z), got 2009-12-29T00:00:00Z", resp.GetRefused()[0].GetMessage())
	})
}

func TestRegisterAndList(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{MaxAgents: 150}})
		var numbers []int
		for n := 1; n <= 120; n++ {
			numbers = append(numbers, n)
		}
		s.Register(numbers...)
		sub := edgetest.Registration(1)
		sub.Id, sub.Name, sub.TokenSha256, sub.ParentId = edgetest.IDBytes(121), "dev", edgetest.TokenHash(edgetest.Token(121)), edgetest.IDBytes(1)
		sub.Workspace.Template.Version, sub.Workspace.Build = "", nil // it keeps those of its workspace
		resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{
			Agents: []*pb.AgentRegistration{sub, edgetest.Rebuilt(edgetest.Registration(2), 122)}, Workspaces: []*pb.Workspace{edgetest.Workspace(123)},
		})
		require.NoError(t, err)
		require.Equal(t, [][]byte{edgetest.IDBytes(2)}, resp.GetSupersededIds())
		resp, err = s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{edgetest.Registration(2)}})
		require.NoError(t, err)
		require.Equal(t, [][]byte{edgetest.IDBytes(2)}, resp.GetStaleIds())

		c := s.Connect(edgetest.Session{Agent: 1})
		now := time.Now()
		c.SendNext(&pb.ConnectRequest{Lifecycle: &pb.Lifecycle{State: pb.Lifecycle_STATE_STARTING, ChangedAt: timestamppb.New(now.Add(time.Hour))}})
		c.RequireAck(edgetest.Ack{Received: 1})

		var all []*pb.Agent
		page := &pb.ListAgentsRequest{PageSize: 50}
		for {
			resp, err := s.Coderd().ListAgents(s.AsCoderd(), page)
			require.NoError(t, err)
			require.LessOrEqual(t, len(resp.GetAgents()), 50)
			all = append(all, resp.GetAgents()...)
			page.PageToken = resp.GetNextPageToken()
			if page.PageToken == "" {
				break
			}
		}
		require.Len(t, all, 121)
		want := &pb.Agent{
			Id: edgetest.IDBytes(1), Name: "main", Workspace: edgetest.Workspace(1), Connected: true, LastSeenAt: timestamppb.New(now),
			Lifecycle: &pb.Lifecycle{State: pb.Lifecycle_STATE_STARTING, ChangedAt: timestamppb.New(now)}, // what it said is to come
			AppHealth: []*pb.AppHealthUpdate{{Id: edgetest.IDBytes(50_001), Health: pb.AppHealth_APP_HEALTH_INITIALIZING}},
		}
		require.True(t, proto.Equal(want, all[0]), "got %v", all[0])
		require.Equal(t, edgetest.IDBytes(1), all[119].GetParentId())
		require.False(t, all[119].GetConnected())
		require.Nil(t, all[119].GetLastSeenAt())

		first, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		require.NoError(t, err)
		require.Len(t, first.GetAgents(), 100)

		for want, req := range map[string]*pb.ListAgentsRequest{
			"page_size: want 0 to 1000, got -1":                                           {PageSize: -1},
			"page_size: want 0 to 1000, got 1001":                                         {PageSize: 1001},
			"page_token: want next_page_token of another page, got 1 bytes that are none": {PageToken: "!"},
		} {
			_, err := s.Coderd().ListAgents(s.AsCoderd(), req)
			edgetest.RequireCode(t, err, codes.InvalidArgument, want)
		}

		var more []*pb.AgentRegistration
		for n := 200; n < 230; n++ {
			more = append(more, edgetest.Registration(n))
		}
		_, err = s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: more})
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "too many registrations: want at most 150 agents (--max-agents), got 151")

		gone, err := s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(3), edgetest.IDBytes(4)}, WorkspaceIds: [][]byte{edgetest.IDBytes(10_001)}})
		require.NoError(t, err)
		require.Equal(t, int64(4), gone.GetDeregistered())
		c.RequireEnd(codes.Unauthenticated, "the agent was deregistered")
	})
}

func TestSync(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{MaxAgents: 5}, Coderd: coderdapi.Options{MaxSyncs: 1, SyncTimeout: time.Minute}})
		s.Register(1, 2, 3, 4)
		sync := func(parts ...*pb.SyncAgentsRequest) (*pb.SyncAgentsResponse, error) {
			c, err := s.Coderd().SyncAgents(s.AsCoderd())
			require.NoError(t, err)
			for _, part := range parts {
				if c.Send(part) != nil {
					break // the answer says why
				}
			}
			return c.CloseAndRecv()
		}
		agents := func(numbers ...int) *pb.SyncAgentsRequest {
			req := &pb.SyncAgentsRequest{}
			for _, n := range numbers {
				req.Agents = append(req.Agents, edgetest.Registration(n))
			}
			return req
		}
		complete, force := &pb.SyncAgentsRequest{Complete: true}, &pb.SyncAgentsRequest{Complete: true, Force: true}

		_, err := sync(agents(1))
		edgetest.RequireCode(t, err, codes.InvalidArgument, "complete: want a message that completes the sync, got the end of the stream")
		_, err = sync(agents(1, 2, 3), agents(4, 5, 6), complete)
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "sync: want at most 5 agents, workspaces and kept workspaces each (--max-agents), got 6, 0 and 0 so far")
		_, err = sync(agents(1), complete)
		edgetest.RequireCode(t, err, codes.FailedPrecondition, "more than half of all agents would be deregistered: 3 of 4; force: want true to do so")

		first, err := s.Coderd().SyncAgents(s.AsCoderd())
		require.NoError(t, err)
		require.NoError(t, first.Send(agents(1, 2)))
		synctest.Wait()
		_, err = sync(complete)
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 1 syncs at once (--max-syncs)")
		s.Register(5) // survives, as it is newer than the sync
		require.NoError(t, first.Send(agents(3)))
		require.NoError(t, first.Send(complete))
		resp, err := first.CloseAndRecv()
		require.NoError(t, err)
		require.True(t, proto.Equal(&pb.SyncAgentsResponse{Registered: 3, Deregistered: 1}, resp), "got %v", resp)

		resp, err = sync(&pb.SyncAgentsRequest{Agents: []*pb.AgentRegistration{edgetest.Rebuilt(edgetest.Registration(1), 6)}}, force)
		require.NoError(t, err)
		require.True(t, proto.Equal(&pb.SyncAgentsResponse{Registered: 1, Deregistered: 3, Superseded: 1}, resp), "got %v", resp)

		s.Register(2, 3)
		_, err = sync(&pb.SyncAgentsRequest{KeptWorkspaceIds: [][]byte{[]byte("none")}})
		edgetest.RequireCode(t, err, codes.InvalidArgument, "kept_workspace_ids[0]: want 16 bytes, got 4")
		_, err = sync(&pb.SyncAgentsRequest{KeptWorkspaceIds: edgetest.IDsBytes(1, 2, 3, 4, 5, 6)})
		edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "got 0, 0 and 6 so far")
		_, err = sync(&pb.SyncAgentsRequest{KeptWorkspaceIds: edgetest.IDsBytes(10_002)}, agents(3), complete)
		require.NoError(t, err)
		s.RequireAgents(2, 3)

		slow, err := s.Coderd().SyncAgents(s.AsCoderd())
		require.NoError(t, err)
		require.NoError(t, slow.Send(agents(1)))
		time.Sleep(time.Minute)
		synctest.Wait()
		_, err = slow.CloseAndRecv()
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	})
}

// A sync refuses registrations alone, and deregisters nothing that these may be of.
func TestSyncRefusesAlone(t *testing.T) {
	bad := func(n int, change func(*pb.AgentRegistration)) *pb.AgentRegistration {
		r := edgetest.Registration(n)
		r.Name = ""
		change(r)
		return r
	}
	for _, c := range []struct {
		name    string
		change  func(*pb.AgentRegistration)
		want    []int
		refused *pb.RegistrationRefusal
	}{
		{
			"its agent", func(*pb.AgentRegistration) {}, []int{1, 2, 3},
			&pb.RegistrationRefusal{AgentId: edgetest.IDBytes(3), WorkspaceId: edgetest.IDBytes(10_003), Field: "name", Message: "want 1 to 64 bytes, got 0"},
		},
		{
			"the agents of its workspace", func(r *pb.AgentRegistration) { r.Id = []byte("none") }, []int{1, 2, 3},
			&pb.RegistrationRefusal{WorkspaceId: edgetest.IDBytes(10_003), Field: "id", Message: "want 16 bytes, got 4"},
		},
		{
			"all agents", func(r *pb.AgentRegistration) { r.Id, r.Workspace.Id = nil, nil }, []int{1, 2, 3, 4},
			&pb.RegistrationRefusal{Field: "id", Message: "want 16 bytes, got 0"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := edgetest.Start(t, edgetest.Settings{})
			s.Register(1, 2, 3, 4)
			sync, err := s.Coderd().SyncAgents(s.AsCoderd())
			require.NoError(t, err)
			require.NoError(t, sync.Send(&pb.SyncAgentsRequest{Agents: []*pb.AgentRegistration{edgetest.Registration(1), bad(3, c.change)}}))
			require.NoError(t, sync.Send(&pb.SyncAgentsRequest{Agents: []*pb.AgentRegistration{edgetest.Registration(2), edgetest.Registration(1)}, Complete: true}))
			resp, err := sync.CloseAndRecv()
			require.NoError(t, err)
			again := &pb.RegistrationRefusal{AgentId: edgetest.IDBytes(1), WorkspaceId: edgetest.IDBytes(10_001), Field: "id", Message: "want each agent once"}
			require.True(t, proto.Equal(&pb.SyncAgentsResponse{
				Registered: 2, Deregistered: int64(4 - len(c.want)), Refused: []*pb.RegistrationRefusal{c.refused, again}, RefusedCount: 2,
			}, resp), "got %v", resp)
			s.RequireAgents(c.want...)
		})
	}
}

// Of many refused registrations the first are named and all are counted; a call of
// them is paced like one that is refused.
func TestManyRefusedRegistrations(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		req := &pb.RegisterAgentsRequest{}
		for n := range 2000 {
			r := edgetest.Registration(n + 1)
			r.Name = ""
			req.Agents = append(req.Agents, r)
		}
		req.Agents = append(req.Agents, edgetest.Registration(3000))
		resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
		require.NoError(t, err)
		require.Len(t, resp.GetRefused(), 1000)
		require.Equal(t, int64(2000), resp.GetRefusedCount())
		s.RequireAgents(3000)
		began := time.Now()
		for range 40 {
			_, err = s.Coderd().RegisterAgents(s.AsCoderd(), req)
			require.NoError(t, err)
		}
		require.Greater(t, time.Since(began), time.Second)
	})
}

func TestGetMetadata(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxMessageBytes: 10_000, MaxAgentMessageBytes: 10_000}})
		s.Register(1, 2, 3)
		sent := time.Now()
		for n, pairs := range map[int][]string{1: {"b", "2", "a", "1"}, 3: {"c", "3"}} {
			s.Request(n, edgetest.Metadata(pairs...))
		}
		s.Request(2, edgetest.Metadata())
		time.Sleep(10 * time.Second)
		get := func(numbers ...int) (*pb.GetMetadataResponse, error) {
			req := &pb.GetMetadataRequest{}
			for _, n := range numbers {
				req.AgentIds = append(req.AgentIds, edgetest.IDBytes(n))
			}
			return s.Coderd().GetMetadata(s.AsCoderd(), req)
		}
		resp, err := get(3, 2, 99, 1)
		require.NoError(t, err)
		at := timestamppb.New(sent)
		require.True(t, proto.Equal(&pb.GetMetadataResponse{Agents: []*pb.AgentMetadata{
			{AgentId: edgetest.IDBytes(3), Values: []*pb.MetadataValue{{Key: "c", Value: "3", CollectedAt: at}}},
			{AgentId: edgetest.IDBytes(1), Values: []*pb.MetadataValue{{Key: "a", Value: "1", CollectedAt: at}, {Key: "b", Value: "2", CollectedAt: at}}},
		}}, resp), "got %v", resp)

		_, err = get()
		edgetest.RequireCode(t, err, codes.InvalidArgument, "agent_ids: want 1 to 1000, got 0")
		_, err = get(make([]int, 1001)...)
		require.Equal(t, codes.ResourceExhausted, status.Code(err), "17 KB of ids")
		_, err = get(1, 1)
		edgetest.RequireCode(t, err, codes.InvalidArgument, "agent_ids[1]: want each agent once, got "+edgetest.ID(1).String()+" again")

		for i := range 8 {
			key := string(rune('a' + i))
			s.Request(1, edgetest.Metadata(key, strings.Repeat("x", 2000)))
		}
		time.Sleep(10 * time.Second)
		_, err = get(1)
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Contains(t, err.Error(), "want at most 10000 bytes of metadata (--max-message-bytes), got 16157: ask for fewer agents at once")
		require.Empty(t, status.Convert(err).Details(), "no delay: the client asks for fewer")
	})
}

// Registrations that are too large together are refused with the limit and the
// value, which sending again does not change.
func TestRegistrationsTooLarge(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{MaxBytes: 4000}})
		s.Register(1)
		var more []*pb.AgentRegistration
		for n := range 10 {
			more = append(more, edgetest.Registration(n+2))
		}
		requireTooLarge := func(err error) {
			t.Helper()
			require.Equal(t, codes.ResourceExhausted, status.Code(err))
			require.Regexp(t, `^too large registrations: want at most 4000 bytes in memory of all \(--max-registrations-bytes\), got [0-9]+$`, status.Convert(err).Message())
		}
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: more})
		requireTooLarge(err)
		sync, err := s.Coderd().SyncAgents(s.AsCoderd())
		require.NoError(t, err)
		require.NoError(t, sync.Send(&pb.SyncAgentsRequest{Agents: more, Complete: true, Force: true}))
		_, err = sync.CloseAndRecv()
		requireTooLarge(err)
		require.Equal(t, 2.0, s.Counter("agentstatsd_registration_changes_refused_total", "max_bytes"))
	})
}
