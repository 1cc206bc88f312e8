package adminapi_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/pubsub"
)

// named is the registration of agent n with these names.
func named(n int, owner, workspace, name, template string) *pb.AgentRegistration {
	r := edgetest.Registration(n)
	r.Name, r.Workspace.Name, r.Workspace.OwnerUsername, r.Workspace.Template.Name = name, workspace, owner, template
	return r
}

// register registers agents as they are.
func register(s *edgetest.Service, agents ...*pb.AgentRegistration) {
	s.T.Helper()
	for part := range slices.Chunk(agents, 1000) {
		resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: part})
		require.NoError(s.T, err)
		require.Empty(s.T, resp.GetRefused())
	}
}

// search returns the answer to a search, and the names of what it lists.
func search(s *edgetest.Service, req *pb.SearchAgentsRequest) (*pb.SearchAgentsResponse, []string) {
	s.T.Helper()
	resp, err := s.Operators().SearchAgents(s.AsOperator(), req)
	require.NoError(s.T, err)
	var names []string
	for _, a := range resp.GetAgents() {
		names = append(names, fmt.Sprintf("%s/%s.%s", a.GetOwner(), a.GetWorkspace(), a.GetName()))
	}
	return resp, names
}

func TestSearchAgents(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	register(s,
		named(1, "grace", "web", "main", "docker"),
		named(2, "ada", "web", "main", "docker"),
		named(3, "ada", "web", "gpu", "kubernetes"),
		named(4, "ada", "api", "main", "kubernetes"),
		named(5, "Ängström", "API.v2", "main", "docker"),
	)
	connected := s.Connect(edgetest.Session{Agent: 2})
	all := []string{"ada/api.main", "ada/web.gpu", "ada/web.main", "grace/web.main", "Ängström/API.v2.main"}
	for _, c := range []struct {
		name string
		req  *pb.SearchAgentsRequest
		want []string
	}{
		{"all", &pb.SearchAgentsRequest{}, all},
		{"owner", &pb.SearchAgentsRequest{Owner: "ada"}, all[:3]},
		{"owner is no part", &pb.SearchAgentsRequest{Owner: "ad"}, nil},
		{"template", &pb.SearchAgentsRequest{Template: "kubernetes"}, all[:2]},
		{"connected", &pb.SearchAgentsRequest{Status: "connected"}, all[2:3]},
		{"timeout, as none is new", &pb.SearchAgentsRequest{Status: "timeout"}, []string{all[0], all[1], all[3], all[4]}},
		{"all filters", &pb.SearchAgentsRequest{Owner: "ada", Template: "kubernetes", Status: "timeout", Query: "GPU"}, all[1:2]},
		{"part of an owner", &pb.SearchAgentsRequest{Query: " rac "}, all[3:4]},
		{"part of a workspace", &pb.SearchAgentsRequest{Query: "AP"}, []string{all[0], all[4]}},
		{"part of an agent", &pb.SearchAgentsRequest{Query: "gp"}, all[1:2]},
		{"part of a template", &pb.SearchAgentsRequest{Query: "berne"}, all[:2]},
		{"the whole name", &pb.SearchAgentsRequest{Query: "ada/web.main"}, all[2:3]},
		{"letters beyond ASCII", &pb.SearchAgentsRequest{Query: "ängstRÖM/api"}, all[4:]},
		{"id of an agent", &pb.SearchAgentsRequest{Query: strings.ToUpper(edgetest.ID(4).String())}, all[:1]},
		{"id of a workspace", &pb.SearchAgentsRequest{Query: edgetest.ID(10_004).String()}, all[:1]},
		{"none", &pb.SearchAgentsRequest{Query: "nobody"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, names := search(s, c.req)
			require.Equal(t, c.want, names)
			require.Equal(t, float64(len(c.want)), resp.GetTotal())
			require.Empty(t, resp.GetNextPageToken())
		})
	}
	require.NoError(t, connected.CloseSend())
}

// An agent in a list has what its parts know of it.
func TestAgentSummary(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{ChangeAdmin: func(c *adminapi.Components) {
		c.Identity = adminapi.Identity{Name: "replica 0", URL: "http://one.example:2112/x"}
	}})
	s.Register(1, 2)
	c := s.Connect(edgetest.Session{Agent: 1})
	c.RequireDurable(c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_READY)))
	refused := edgetest.Gauge("a-b", 1)
	refused.Metrics = append(refused.Metrics, edgetest.Gauge("load", 1).GetMetrics()...)
	refused.ConnectionCount = 1
	reported := c.SendNext(edgetest.Stats(refused))
	require.NotNil(t, c.Next().GetRefusals())
	c.RequireDurable(reported)

	resp, _ := search(s, &pb.SearchAgentsRequest{})
	a := resp.GetAgents()[0]
	require.WithinDuration(t, time.Now(), a.GetLastSeenAt().AsTime(), time.Minute)
	requireJSON(t, `{"id":"01000000-0000-0000-0000-000000000001", "name":"main", "workspace":"ws1", `+
		`"workspaceId":"01000000-0000-0000-0000-000000002711", "owner":"ada", "template":"docker", "templateVersion":"v1", `+
		`"status":"connected", "lifecycle":"ready", "replica":"replica 0", `+
		`"replicaUrl":"http://one.example:2112/x/status/agents/01000000-0000-0000-0000-000000000001", "series":8, "refused":1}`, a, "lastSeenAt")
	requireJSON(t, `{"id":"01000000-0000-0000-0000-000000000002", "name":"main", "workspace":"ws2", `+
		`"workspaceId":"01000000-0000-0000-0000-000000002712", "owner":"ada", "template":"docker", "templateVersion":"v1", `+
		`"status":"timeout", "series":0}`, resp.GetAgents()[1])
}

// requireJSON compares a message, without some fields that it must have.
func requireJSON(t *testing.T, want string, m proto.Message, without ...string) {
	t.Helper()
	text, err := protojson.Marshal(m)
	require.NoError(t, err)
	fields := make(map[string]any)
	require.NoError(t, json.Unmarshal(text, &fields))
	for _, name := range without {
		require.Contains(t, fields, name)
		delete(fields, name)
	}
	text, err = json.Marshal(fields)
	require.NoError(t, err)
	require.JSONEq(t, want, string(text))
}

// membership is that of a replica that lives beside another one, with which it shares
// nothing: one of them has all.
type membership struct {
	self, other agent.ID
	leaves      bool
}

func (m membership) Self() agent.ID         { return m.self }
func (membership) Member() bool             { return true }
func (membership) Serve()                   {}
func (membership) Changed() <-chan struct{} { return nil }
func (m membership) Live(id agent.ID) bool  { return id == m.other }

func (m membership) Sharing() []agent.ID {
	if m.leaves {
		return []agent.ID{m.other}
	}
	return []agent.ID{m.self}
}

// The state of an agent without a session is missing where another replica has the share.
func TestExplainSharedState(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			engine, err := pubsub.NewMemory(prometheus.NewRegistry())
			require.NoError(t, err)
			s := edgetest.Start(t, edgetest.Settings{
				Join: func(f *fleet.Fleet) { f.Join(membership{agent.ID{1}, agent.ID{2}, leaves}, engine) },
			})
			s.Register(1)
			resp, err := s.Operators().ExplainSeries(s.AsOperator(), &pb.ExplainSeriesRequest{Selector: `coderd_agents_connections{workspace_name="ws1"}`})
			require.NoError(t, err)
			if !leaves {
				require.Empty(t, resp.GetFindings())
				require.Len(t, resp.GetServed(), 1)
				return
			}
			require.Empty(t, resp.GetServed())
			require.Equal(t, "other_replica", resp.GetFindings()[0].GetCause())
			require.Contains(t, resp.GetFindings()[0].GetText(), "Agent ada/ws1.main has no session; replicas share the states of such agents, and another one serves this one")
		})
	}
}

// Agents of all replicas are found. Of those that are at another one it is said which, and
// not how many series they have.
func TestSearchAgentsOfReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		engine, err := pubsub.NewMemory(prometheus.NewRegistry())
		require.NoError(t, err)
		at := membership{self: agent.ID{1}, other: agent.ID{2}}
		s := edgetest.Start(t, edgetest.Settings{
			Join:        func(f *fleet.Fleet) { f.Join(at, engine) },
			ChangeAdmin: func(c *adminapi.Components) { c.Identity = adminapi.Identity{ID: at.self, Name: "here"} },
		})
		s.Register(1, 2, 3)
		s.Connect(edgetest.Session{Agent: 2})
		_, err = s.Store.SaveSessions(t.Context(), []agent.SessionRecord{{
			Agent: edgetest.ID(1), Incarnation: s.Fleet.Registration(edgetest.ID(1)).Incarnation,
			Epoch: time.Now().UnixNano(), Replica: at.other, Open: true, Relayed: true,
		}})
		require.NoError(t, err)
		time.Sleep(time.Minute) // the fleet reads what other replicas write
		resp, _ := search(s, &pb.SearchAgentsRequest{})
		var got []string
		for _, a := range resp.GetAgents() {
			got = append(got, fmt.Sprint(a.GetStatus(), " at ", a.GetReplica(), ", relayed ", a.GetRelayed(), ", series ", a.Series != nil))
		}
		require.Equal(t, []string{
			"connected at " + at.other.String() + ", relayed true, series false",
			"connected at here, relayed false, series true",
			"timeout at , relayed false, series true",
		}, got)
		resp, names := search(s, &pb.SearchAgentsRequest{Status: "connected"})
		require.Equal(t, []string{"ada/ws1.main", "ada/ws2.main"}, names)
		require.Equal(t, 2.0, resp.GetTotal())
		require.Nil(t, describe(s, "ada/ws1").GetSession())
	})
}

// Whoever pages sees each agent once that is registered all the time, whatever is
// registered, renamed or removed meanwhile.
func TestSearchPagesOverChanges(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	var agents []*pb.AgentRegistration
	for n := 1; n <= 97; n++ { // many have the same names
		agents = append(agents, named(n, fmt.Sprint("owner", n%3), fmt.Sprint("ws", n%7), "main", "docker"))
	}
	register(s, agents...)
	_, all := search(s, &pb.SearchAgentsRequest{PageSize: 1000})
	require.Len(t, all, 97)
	require.True(t, slices.IsSorted(all))

	seen := make(map[string]int)
	removed := map[string]bool{}
	req := &pb.SearchAgentsRequest{PageSize: 10}
	for page := 1; ; page++ {
		resp, _ := search(s, req)
		for _, a := range resp.GetAgents() {
			seen[a.GetId()]++
		}
		// The last agent of the page goes, so does one that comes later. Others come, before and
		// behind.
		last := resp.GetAgents()[len(resp.GetAgents())-1].GetId()
		victim := edgetest.ID(page).String()
		removed[last], removed[victim] = true, true
		var gone [][]byte
		for n := range agents {
			if id := edgetest.ID(n + 1).String(); id == last || id == victim {
				gone = append(gone, edgetest.IDBytes(n+1))
			}
		}
		_, err := s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: gone})
		require.NoError(t, err)
		register(s, named(200+page, "aaa", fmt.Sprint("new", page), "main", "docker"), named(300+page, "zzz", fmt.Sprint("new", page), "main", "docker"))
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			break
		}
	}
	for id, n := range seen {
		require.Equal(t, 1, n, id)
	}
	for n := range agents {
		if id := edgetest.ID(n + 1).String(); !removed[id] {
			require.Contains(t, seen, id)
		}
	}
}

func TestSearchRefuses(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	for _, c := range []struct {
		req  *pb.SearchAgentsRequest
		want string
	}{
		{&pb.SearchAgentsRequest{PageSize: -1}, "page_size: want 0 to 1000, got -1"},
		{&pb.SearchAgentsRequest{PageSize: 1001}, "page_size: want 0 to 1000, got 1001"},
		{&pb.SearchAgentsRequest{Status: "online"}, `status: want one of ["connecting" "connected" "disconnected" "timeout"], got "online"`},
		{&pb.SearchAgentsRequest{PageToken: "?"}, "page_token: want next_page_token of another page, got 1 bytes that are none"},
		{&pb.SearchAgentsRequest{PageToken: "W10"}, "page_token: want next_page_token of another page, got 3 bytes that are none"},
	} {
		_, err := s.Operators().SearchAgents(s.AsOperator(), c.req)
		edgetest.RequireCode(t, err, codes.InvalidArgument, c.want)
	}
	_, err := s.Operators().SearchAgents(s.AsCoderd(), &pb.SearchAgentsRequest{})
	require.NoError(t, err)
	_, err = s.Operators().SearchAgents(edgetest.As(t.Context(), edgetest.Token(1)), &pb.SearchAgentsRequest{})
	edgetest.RequireCodeContains(t, err, codes.PermissionDenied, "")
	_, err = s.Operators().SearchAgents(t.Context(), &pb.SearchAgentsRequest{})
	edgetest.RequireCodeContains(t, err, codes.Unauthenticated, "")
}

func TestSearchBeforeTheRegistrations(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Down: true})
	_, err := s.Operators().SearchAgents(s.AsOperator(), &pb.SearchAgentsRequest{})
	edgetest.RequireCodeContains(t, err, codes.Unavailable, "the registrations are not available now")
}
