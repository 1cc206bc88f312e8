package adminapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// describe returns what an operator is told of an agent.
func describe(s *edgetest.Service, name string) *pb.DescribeAgentResponse {
	s.T.Helper()
	resp, err := s.Operators().DescribeAgent(s.AsOperator(), &pb.DescribeAgentRequest{Agent: name})
	require.NoError(s.T, err)
	return resp
}

func TestDescribeAgent(t *testing.T) { bubble.Test(t, testDescribeAgent) }

func testDescribeAgent(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	r := edgetest.Registration(1)
	r.MetadataKeys = []string{"cpu", "disk", "mem"}
	r.ParentId = edgetest.IDBytes(7)
	register(s, r)
	hello := edgetest.Hello(edgetest.Session{})
	hello.Hello.Version = "v2.31.0"

	began := time.Now()
	before := s.Open(edgetest.As(t.Context(), edgetest.Token(1)))
	require.NoError(t, before.Send(hello))
	before.Next()
	before.RequireDurable(before.SendNext(edgetest.Metadata("cpu", "3 cores", "mem", "2 GB")))
	before.RequireDurable(before.SendNext(edgetest.Goodbye()))
	before.RequireEnd(codes.OK, "")

	// What follows is pending, as no time passes.
	c := s.Connect(edgetest.Session{Agent: 1, Instance: 2})
	c.SendNext(edgetest.Metadata("mem", "4 GB", "disk", "full"))
	c.SendNext(&pb.ConnectRequest{AppHealth: &pb.AppHealthReport{Updates: []*pb.AppHealthUpdate{{Id: edgetest.IDBytes(50_001), Health: pb.AppHealth_APP_HEALTH_HEALTHY}}}})
	report := edgetest.Gauge("load", 1)
	report.Metrics = append(report.Metrics, edgetest.Gauge("a-b", 1).GetMetrics()...)
	last := c.SendNext(edgetest.Stats(report))
	for c.Next().GetRefusals() == nil { // acks come before
	}
	c.RequireAck(edgetest.Ack{Received: last})

	resp := describe(s, "ada/ws1")
	require.Equal(t, resp.GetSummary().GetId(), describe(s, edgetest.ID(1).String()).GetSummary().GetId())
	require.Equal(t, 8.0, resp.GetSummary().GetSeries())
	resp.Summary = nil
	session, ended := resp.GetSession(), resp.GetLastSessions()
	require.Len(t, ended, 1)
	require.True(t, time.Now().Equal(session.GetOpenedAt().AsTime()))
	require.True(t, time.Now().Equal(ended[0].GetEndedAt().AsTime()))
	requireJSON(t, `{"instance":"02000000000000000000000000000000", "receivedSequence":3}`, session, "openedAt", "epoch")
	requireJSON(t, `{"instance":"01000000000000000000000000000000", "end":"goodbye", "version":"v2.31.0", "receivedSequence":1, "durableSequence":1}`,
		ended[0], "openedAt", "endedAt", "epoch")
	require.Less(t, ended[0].GetEpoch(), session.GetEpoch())
	resp.Session, resp.LastSessions = nil, nil
	require.True(t, began.Equal(resp.GetMetadata()[0].GetCollectedAt().AsTime()))
	for _, m := range resp.GetMetadata() {
		m.CollectedAt = nil
	}
	require.True(t, time.Now().Equal(resp.GetRefused()[0].GetAt().AsTime()))
	resp.Refused[0].At = nil
	requireJSON(t, `{"organization":"acme", "buildId":"01000000-0000-0000-0000-000000009c41", "createdAt":"1999-12-31T12:00:00Z",
		"parentId":"01000000-0000-0000-0000-000000000007", "declaredMetadataKeys":["cpu", "disk", "mem"],
		"apps":[{"slug":"code", "displayName":"code", "health":"healthy"}],
		"metadata":[{"key":"cpu", "value":"3 cores"}, {"key":"disk", "pending":true}, {"key":"mem", "value":"2 GB", "pending":true}],
		"series":[
			{"name":"coderd_agentstats_connection_count", "count":1},
			{"name":"coderd_agentstats_rx_bytes", "count":1},
			{"name":"coderd_agentstats_session_count_jetbrains", "count":1},
			{"name":"coderd_agentstats_session_count_reconnecting_pty", "count":1},
			{"name":"coderd_agentstats_session_count_ssh", "count":1},
			{"name":"coderd_agentstats_session_count_vscode", "count":1},
			{"name":"coderd_agentstats_tx_bytes", "count":1},
			{"name":"load", "count":1}],
		"refused":[{"reason":"invalid_name", "problem":"sample name \"a-b\" is not like [a-zA-Z_:][a-zA-Z0-9_:]*", "names":["a-b"], "count":1}]}`, resp)
}

// What a replica does not know of an agent is left out.
func TestDescribeAgentThatNeverCame(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	resp := describe(s, "ada/ws1.main")
	require.NotNil(t, resp.GetSummary())
	resp.Summary = nil
	requireJSON(t, `{"organization":"acme", "buildId":"01000000-0000-0000-0000-000000009c41", "createdAt":"1999-12-31T12:00:00Z",
		"apps":[{"slug":"code", "displayName":"code", "health":"initializing"}]}`, resp)
}

// While the database is down the rest is known.
func TestDescribeAgentWithoutDatabase(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	s.Store.SetDown(true)
	defer s.Store.SetDown(false) // or the end waits for it
	c := s.Connect(edgetest.Session{Agent: 1})
	c.RequireAck(edgetest.Ack{Received: c.SendNext(edgetest.Metadata("cpu", "3 cores"))})
	s.Connect(edgetest.Session{Agent: 1, Instance: 2})
	resp := describe(s, "ada/ws1")
	require.Equal(t, "the database cannot be used now; try again", resp.GetMetadataProblem(), "its own words are for the log")
	require.Len(t, resp.GetMetadata(), 1)
	require.True(t, proto.Equal(&pb.AgentMetadataEntry{Key: "cpu", Pending: true}, resp.GetMetadata()[0]))
	require.Equal(t, "takeover", resp.GetLastSessions()[0].GetEnd())
}

// Long values are cut if there are many.
func TestMetadataValues(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{
		Coderd:  coderdapi.Options{MaxDeclaredKeys: 1024},
		Batcher: batcher.Options{BatchSize: 500, FlushInterval: 10 * time.Millisecond, MaxPending: 10_000},
	})
	r := edgetest.Registration(1)
	const keys = 700
	report := &pb.MetadataReport{}
	for n := range keys {
		key := fmt.Sprintf("key%04d", n)
		r.MetadataKeys = append(r.MetadataKeys, key)
		report.Metadata = append(report.Metadata, &pb.Metadata{Key: key, Result: &pb.Metadata_Result{
			Value: strings.Repeat("v", 1000), Error: strings.Repeat("e", 1000),
		}})
	}
	register(s, r)
	c := s.Connect(edgetest.Session{Agent: 1})
	for part := range slices.Chunk(report.GetMetadata(), keys/2) { // a message has room for no more
		c.RequireDurable(c.SendNext(&pb.ConnectRequest{Metadata: &pb.MetadataReport{Metadata: part}}))
	}

	whole := 0
	for _, m := range describe(s, "ada/ws1").GetMetadata() {
		if len(m.GetValue()) == 1000 && len(m.GetError()) == 1000 {
			whole++
			continue
		}
		require.Less(t, len(m.GetValue()), 110)
		require.Less(t, len(m.GetError()), 110)
		require.NotEmpty(t, m.GetValue())
	}
	require.Equal(t, 1<<20/2000, whole)
}

func TestFindAgent(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	register(s,
		named(1, "ada", "web", "main", "docker"),
		named(2, "ada", "web.v2", "main", "docker"),
		named(3, "ada", "web", "v2", "docker"),
		named(4, "grace/x", "api", "main", "docker"),
		named(5, "grace", "x/api", "dev", "docker"),
	)
	var many []*pb.AgentRegistration
	for n := 100; n < 112; n++ { // workspaces with equal names
		many = append(many, named(n, "bob", "same", "main", "docker"))
	}
	register(s, many...)
	for text, n := range map[string]int{
		edgetest.ID(3).String():                  3,
		strings.ToUpper(edgetest.ID(3).String()): 3,
		"ada/web.main":                           1,
		"ada/web.v2.main":                        2,
		"grace/x/api.main":                       4,
		"grace/x/api.dev":                        5,
	} {
		require.Equal(t, edgetest.ID(n).String(), describe(s, text).GetSummary().GetId(), text)
	}
	first := func(n int) string { return fmt.Sprintf("bob/same.main (%s)", edgetest.ID(n)) }
	var ten []string
	for n := 100; n < 110; n++ {
		ten = append(ten, first(n))
	}
	for _, c := range []struct {
		text string
		code codes.Code
		want string
	}{
		{edgetest.ID(9).String(), codes.NotFound, fmt.Sprintf("agent: none is registered as %q", edgetest.ID(9))},
		{"ada/web.gpu", codes.NotFound, `agent: none is registered as "ada/web.gpu"`},
		{"ada/we", codes.NotFound, `agent: none is registered as "ada/we"`},
		{"ada/", codes.NotFound, `agent: none is registered as "ada/"`},
		{"/" + strings.Repeat("x", 300), codes.NotFound, `agent: none is registered as "/` + strings.Repeat("x", 199) + `"`},
		{"ada", codes.InvalidArgument, `agent: want a UUID, OWNER/WORKSPACE or OWNER/WORKSPACE.AGENT, got "ada"`},
		{"", codes.InvalidArgument, `agent: want a UUID, OWNER/WORKSPACE or OWNER/WORKSPACE.AGENT, got ""`},
		{"ada/web", codes.FailedPrecondition, fmt.Sprintf(`agent: "ada/web" may be each of 2: ada/web.main (%s), ada/web.v2 (%s)`, edgetest.ID(1), edgetest.ID(3))},
		{"ada/web.v2", codes.FailedPrecondition, fmt.Sprintf(`agent: "ada/web.v2" may be each of 2: ada/web.v2 (%s), ada/web.v2.main (%s)`, edgetest.ID(3), edgetest.ID(2))},
		{"grace/x/api", codes.FailedPrecondition, fmt.Sprintf(`agent: "grace/x/api" may be each of 2: grace/x/api.dev (%s), grace/x/api.main (%s)`, edgetest.ID(5), edgetest.ID(4))},
		{"bob/same", codes.FailedPrecondition, `agent: "bob/same" may be each of 12: ` + strings.Join(ten, ", ") + " and 2 more"},
	} {
		_, err := s.Operators().DescribeAgent(s.AsOperator(), &pb.DescribeAgentRequest{Agent: c.text})
		edgetest.RequireCode(t, err, c.code, c.want)
	}
	_, err := s.Operators().DescribeAgent(edgetest.As(t.Context(), edgetest.Token(1)), &pb.DescribeAgentRequest{Agent: "ada/web.main"})
	edgetest.RequireCodeContains(t, err, codes.PermissionDenied, "")
}
