package plan_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/plan"
)

// An agent that was removed goes, also if it is back by now. Of all registrations, what is
// not among them goes.
func TestFollowRemovals(t *testing.T) {
	r := with([]agent.Registration{registration(1, 1, 1), registration(2, 2, 1), registration(3, 3, 1)})
	back := but(registration(2, 2, 1), func(r *agent.Registration) { r.Incarnation = 7 })
	got := &agent.Registrations{Agents: []agent.Registration{back, registration(3, 3, 1), registration(4, 4, 1)}, RemovedAgents: ids(1, 99)}
	p := plan.FollowRemovals(r, got)
	require.Equal(t, ids(1, 2), p.Deregistered)
	require.Equal(t, ids(1, 2), p.Change.RemovedAgents)
	got = &agent.Registrations{Agents: []agent.Registration{registration(3, 3, 1)}, Complete: true}
	require.Equal(t, ids(1, 2), plan.FollowRemovals(r, got).Deregistered)
}

// What another replica changed of a workspace reaches its other agents. What it named again
// is known as named.
func TestFollowChanges(t *testing.T) {
	r := with([]agent.Registration{registration(1, 1, 1), but(registration(2, 1, 1), named("dev")), registration(3, 3, 1), registration(4, 4, 1)}, registration(9, 9, 1).Workspace)
	moved := but(registration(1, 1, 1), func(r *agent.Registration) {
		r.Workspace.Name, r.MetadataKeys = "moved", []string{"b", "a"}
	})
	p := plan.FollowChanges(r, &agent.Registrations{
		Agents: []agent.Registration{moved}, Workspaces: []agent.Workspace{registration(8, 8, 1).Workspace},
		NamedAgents: ids(1, 3, 99), NamedWorkspaces: ids(1001, 1004, 1099), RemovedWorkspaces: ids(1009, 1004, 1077),
	})
	require.Equal(t, ids(1, 2), sorted(slices.Collect(maps.Keys(p.Agents))))
	require.Equal(t, "moved", p.Agents[nid(2)].Workspace.Name)
	require.Equal(t, "dev", p.Agents[nid(2)].Name)
	require.Equal(t, []string{"a", "b"}, p.Agents[nid(1)].MetadataKeys)
	require.Equal(t, ids(1, 3), sorted(slices.Collect(maps.Keys(p.Named))))
	require.Equal(t, ids(3), p.Again)
	require.Equal(t, ids(1001, 1004, 1008), sorted(slices.Collect(maps.Keys(p.Workspaces))))
	require.Equal(t, "moved", p.Workspaces[nid(1001)].Name)
	require.Equal(t, ids(1009), p.Change.RemovedWorkspaces, "one that was named since stays")

	p = plan.FollowChanges(r, &agent.Registrations{Complete: true, Agents: []agent.Registration{registration(1, 1, 1)}})
	require.Equal(t, ids(1003, 1004, 1009), sorted(p.Change.RemovedWorkspaces))
}

// An agent keeps its incarnation. A new one gets the revision.
func TestSetIncarnations(t *testing.T) {
	r := with([]agent.Registration{but(registration(1, 1, 1), func(r *agent.Registration) { r.Incarnation = 3 })})
	p := plan.FollowChanges(r, &agent.Registrations{Agents: []agent.Registration{registration(1, 1, 1), registration(2, 2, 1)}})
	p.SetIncarnations(r, 9)
	require.Equal(t, int64(3), p.Agents[nid(1)].Incarnation)
	require.Equal(t, int64(9), p.Agents[nid(2)].Incarnation)
}
