package adminapi_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Costs are of each family, the dearest first; what-if says how many series are left.
func TestGetCost(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1, 2)
	var many []*pb.Stats_Metric
	for i := range 20 {
		many = append(many, labelled("requests", "path", fmt.Sprint("/", i)))
	}
	for n := range 2 {
		c := s.Connect(edgetest.Session{Agent: n + 1})
		c.SendNext(edgetest.Stats(&pb.Stats{Metrics: many}))
		c.RequireDurable(1)
	}
	admin := pb.NewAdminServiceClient(s.Conn)
	resp, err := admin.GetCost(edgetest.As(t.Context(), edgetest.OperatorToken), &pb.GetCostRequest{})
	require.NoError(t, err)
	dearest := resp.GetFamilies()[0]
	require.Equal(t, "requests", dearest.GetFamily())
	require.Equal(t, 40.0, dearest.GetSeries())
	require.Equal(t, 40.0, dearest.GetServed())
	require.Nil(t, dearest.WhatIfServed)
	require.Greater(t, dearest.GetBytes(), 40*50.0)
	require.Empty(t, resp.GetLabels())

	resp, err = admin.GetCost(s.AsCoderd(), &pb.GetCostRequest{WhatIfLabels: []string{"template_name"}})
	require.NoError(t, err)
	require.Equal(t, 40.0, resp.GetFamilies()[0].GetServed())
	require.NotNil(t, resp.GetFamilies()[0].WhatIfServed)
	require.Equal(t, 20.0, resp.GetFamilies()[0].GetWhatIfServed(), "both are of one template")

	for _, labels := range [][]string{{"path"}, {"username", "username"}} {
		_, err = admin.GetCost(s.AsCoderd(), &pb.GetCostRequest{WhatIfLabels: labels})
		edgetest.RequireCodeContains(t, err, codes.InvalidArgument, "what_if_labels[")
	}
}
