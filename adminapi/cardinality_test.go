package adminapi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func labelled(name string, pairs ...string) *pb.Stats_Metric {
	m := &pb.Stats_Metric{Name: name, Type: pb.Stats_Metric_TYPE_GAUGE, Value: 1}
	for i := 0; i < len(pairs); i += 2 {
		m.Labels = append(m.Labels, &pb.Stats_Metric_Label{Name: pairs[i], Value: pairs[i+1]})
	}
	return m
}

// Each question has the names with the most series first.
func TestGetCardinality(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1, 2)
	var many []*pb.Stats_Metric
	for i := range 5 {
		many = append(many, labelled("requests", "path", fmt.Sprint("/", i), "method", "get"))
	}
	for n, metrics := range map[int][]*pb.Stats_Metric{1: many, 2: append(many[:1:1], labelled("other"))} {
		c := s.Connect(edgetest.Session{Agent: n})
		c.SendNext(edgetest.Stats(&pb.Stats{Metrics: metrics}))
		c.RequireDurable(1)
	}
	admin := pb.NewAdminServiceClient(s.Conn)
	get := func(req *pb.GetCardinalityRequest) *pb.GetCardinalityResponse {
		t.Helper()
		resp, err := admin.GetCardinality(edgetest.As(t.Context(), edgetest.OperatorToken), req)
		require.NoError(t, err)
		return resp
	}
	first := func(req *pb.GetCardinalityRequest) string {
		t.Helper()
		row := get(req).GetGroup().GetRows()[0]
		return fmt.Sprint(row.GetName(), " ", row.GetSeries())
	}
	require.Equal(t, "requests 6", first(&pb.GetCardinalityRequest{}))
	require.Equal(t, "family", get(&pb.GetCardinalityRequest{}).GetGroup().GetBy())
	require.Equal(t, "/0 2", first(&pb.GetCardinalityRequest{By: "value", Label: "path"}))
	require.Equal(t, `username="ada" 6`, first(&pb.GetCardinalityRequest{By: "value", Family: "requests"}))
	of := edgetest.Workspace(1)
	agent := get(&pb.GetCardinalityRequest{By: "agent", Limit: 1}).GetGroup()
	require.Len(t, agent.GetRows(), 1)
	require.Equal(t, 2.0, agent.GetTotal())
	require.Equal(t, edgetest.ID(1).String(), agent.GetRows()[0].GetId())
	require.Equal(t, of.GetOwnerUsername()+"/"+of.GetName()+"."+edgetest.Registration(1).GetName(), agent.GetRows()[0].GetName())
	require.Contains(t, first(&pb.GetCardinalityRequest{By: "workspace"}), of.GetOwnerUsername()+"/"+of.GetName()+" ")
	require.Contains(t, first(&pb.GetCardinalityRequest{By: "template"}), of.GetTemplate().GetName()+" ")
	require.Equal(t, 2.0, get(&pb.GetCardinalityRequest{}).GetAgents())

	long := strings.Repeat("x", 1000)
	for want, req := range map[string]*pb.GetCardinalityRequest{
		`by: want one of family, label, value, template, owner, workspace, agent, got "` + long[:40] + `"`: {By: long},
		"limit: want 0 to 10000, got 10001":                           {Limit: 10001},
		`label: want one with by=value only, got "` + long[:40] + `"`: {By: "family", Label: long},
	} {
		_, err := admin.GetCardinality(s.AsCoderd(), req)
		edgetest.RequireCodeContains(t, err, codes.InvalidArgument, want)
	}
}
