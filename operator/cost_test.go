package operator

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestRefusals(t *testing.T) {
	a := startFake(t, "127.0.0.1", &fake{refusals: &pb.ListRefusalsResponse{
		Agents: []*pb.RefusedAgent{
			{Id: "1", Refused: []*pb.Refused{{Reason: "wrong_type", Problem: "older", Count: 3, At: before(5 * time.Hour)}}},
			{Id: "3", Refused: []*pb.Refused{{Reason: "key_length", Count: 1, At: before(9 * time.Hour)}}},
		},
		Sums: []*pb.RefusalSums{
			{By: "template", Others: 2, Sums: []*pb.RefusalSum{
				{Name: "k8s", Items: 4, LastAt: before(9 * time.Hour), Reasons: []*pb.NamedCount{{Name: "key_length", Count: 4}}},
				{Name: "docker", Items: 3, LastAt: before(5 * time.Hour), Reasons: []*pb.NamedCount{{Name: "wrong_type", Count: 2}, {Name: "key_length", Count: 1}}},
			}},
			{By: "owner"},
		},
	}}, nil)
	b := startFake(t, "127.0.0.1", &fake{refusals: &pb.ListRefusalsResponse{
		Agents: []*pb.RefusedAgent{
			{Id: "2", Name: "main", Workspace: "x", Owner: "cem", Template: "k8s", Refused: []*pb.Refused{{Reason: "wrong_type", Count: 1, At: before(2 * time.Hour)}}},
			{Id: "1", Name: "main", Workspace: "dev", Owner: "ada", Template: "docker", Version: "v2", Refused: []*pb.Refused{
				{Reason: "wrong_type", Problem: "app_up: want gauge, got counter", Names: []string{"app_up"}, Count: 2, At: before(time.Hour)},
			}},
		},
		Sums: []*pb.RefusalSums{
			{By: "template", Others: 1, Sums: []*pb.RefusalSum{
				{Name: "docker", Items: 2, LastAt: before(time.Hour), Reasons: []*pb.NamedCount{{Name: "key_length", Count: 2}}},
				{Items: 1},
			}},
			{By: "owner"},
		},
	}}, nil)
	r := run(t, "refusals", "--limit", "2", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.Equal(t, `TEMPLATE  ITEMS  LAST    REASONS
docker    5      1h ago  key_length 3, wrong_type 2
k8s       4      9h ago  key_length 4
(others)  3

AGENT         TEMPLATE  VERSION  REASON      ITEMS  LAST    PROBLEM                          NAMES
ada/dev.main  docker    v2       wrong_type  5      1h ago  app_up: want gauge, got counter  app_up
cem/x.main    k8s                wrong_type  1      2h ago
`, r.stdout)

	nobody := startFake(t, "127.0.0.1", &fake{refusals: &pb.ListRefusalsResponse{Sums: []*pb.RefusalSums{{By: "owner"}}}}, nil)
	r = run(t, "refusals", "--address", nobody.address)
	require.NoError(t, r.err)
	require.Equal(t, "nobody was refused anything\n", r.stdout)
}

func TestCardinality(t *testing.T) {
	one, two := 1.0, 2.4666
	a := startFake(t, "127.0.0.1", &fake{cardinality: &pb.GetCardinalityResponse{Series: 60, Descriptors: 5, Agents: 2, Group: &pb.CardinalityGroup{
		By: "family", Total: 3, Rows: []*pb.CardinalityRow{{Name: "x", Series: 40, Growth: &one}, {Name: "y", Series: 15, Growth: &one}, {Name: "z", Series: 5}},
	}}}, nil)
	b := startFake(t, "127.0.0.1", &fake{cardinality: &pb.GetCardinalityResponse{Series: 40, Descriptors: 4, Agents: 1, Group: &pb.CardinalityGroup{
		By: "family", Total: 2, Rows: []*pb.CardinalityRow{{Name: "y", Series: 30, Growth: &two}, {Name: "x", Series: 10}},
	}}}, nil)
	r := run(t, "cardinality", "--limit", "2", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.Equal(t, `100 series of 3 agents, 9 names with their own labels

FAMILY  SERIES  SHARE   GROWTH/MIN
x       50      50.0 %
y       45      45.0 %  3.5
and 1 more
`, r.stdout)

	b.cardinality.Group.Total = 20_000
	r = run(t, "cardinality", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "and 19997 more\na replica has more than 10000: a row may have up to 10 series more, and rows of fewer are not all known\n")

	a.cardinality.Group.By, b.cardinality.Group.By = "agent", "agent"
	r = run(t, "cardinality", "--by", "agent", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.NotContains(t, r.stdout, "a replica has more")

	for args, want := range map[string]string{"--label=path": "--label needs --by value", "--by=colour": "colour"} {
		r = run(t, "cardinality", args, "--address", a.address)
		require.ErrorContains(t, r.err, want)
	}
	r = run(t, "cardinality", "--by", "agent", "--cost", "--address", a.address)
	require.EqualError(t, r.err, "--cost and --what-if are by family, of all families")
}

// An answer is whole with as many rows as there can be, and values as long as they may be.
func TestLargestCardinality(t *testing.T) {
	group := &pb.CardinalityGroup{By: "value", Label: "path", Total: maxCardinalityRows}
	for n := range maxCardinalityRows {
		group.Rows = append(group.Rows, &pb.CardinalityRow{Name: fmt.Sprintf("%01024d", n), Series: 1})
	}
	a := startFake(t, "127.0.0.1", &fake{cardinality: &pb.GetCardinalityResponse{Group: group}}, nil)
	r := run(t, "cardinality", "--by", "value", "--label", "path", "--address", a.address)
	require.NoError(t, r.err)
	require.Contains(t, r.stdout, "and 9900 more\n")
}

// Sums of a part of the replicas say so, also if nobody gave the others' addresses.
func TestSumsWithoutAReplica(t *testing.T) {
	a := startFake(t, "127.0.0.1", &fake{
		statuses:    []*pb.ReplicaStatus{replicaStatus("a"), asSeen(replicaStatus("b"), 1), {Id: "gone", Name: "gone"}},
		cardinality: &pb.GetCardinalityResponse{Group: &pb.CardinalityGroup{By: "family"}},
	}, nil)
	r := run(t, "cardinality", "--address", a.address)
	require.EqualError(t, r.err, "1 of 2 replicas were not asked, give the --address of each: b")
	require.Equal(t, exitPartial, ExitCode(r.err))
	require.Contains(t, r.stdout, "0 series of 0 agents")
}

func TestCost(t *testing.T) {
	served := 8.0
	more := 2.0
	a := startFake(t, "127.0.0.1", &fake{cost: &pb.GetCostResponse{Labels: []string{"username"}, Families: []*pb.FamilyCost{
		{Family: "x", Series: 10, Bytes: 1 << 20, Served: 4, WhatIfServed: &served}, {Family: "z", Series: 1, Bytes: 3 << 20, Served: 1, WhatIfServed: &more},
	}}}, nil)
	b := startFake(t, "127.0.0.1", &fake{cost: &pb.GetCostResponse{Labels: []string{"username"}, Families: []*pb.FamilyCost{
		{Family: "x", Series: 20, Bytes: 3 << 20, Served: 6, WhatIfServed: &served},
	}}}, nil)
	r := run(t, "cardinality", "--what-if", "username,template_name", "--address", addressesOf(a, b))
	require.NoError(t, r.err)
	require.Equal(t, `served by username

FAMILY  SERIES  MEMORY   SERVED  WHAT IF
x       30      4.0 MiB  10      16
z       1       3.0 MiB  1       2
(all)   31      7.0 MiB  11      18
`, r.stdout)
}
