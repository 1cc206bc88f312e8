package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// What was removed is remembered with the time by the database's clock. So is what was
// registered again since, and what agents went with their workspace.
func testRemovals(t *testing.T, s Store) {
	removals := func(within time.Duration) map[agent.Removal]time.Duration {
		t.Helper()
		list, err := s.Removals(t.Context(), within)
		require.NoError(t, err)
		ages := make(map[agent.Removal]time.Duration, len(list))
		for _, r := range list {
			key := r
			key.Age = 0
			require.NotContains(t, ages, key, "each once")
			ages[key] = r.Age
			require.GreaterOrEqual(t, r.Age, time.Duration(0))
			require.Less(t, r.Age, time.Hour)
		}
		return ages
	}
	began := time.Now()
	register(t, s, id(1), id(2))
	apply(t, s, agent.Change{Agents: []agent.Registration{registration(id(3), id(101))}})
	require.Empty(t, removals(time.Hour))
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}, RemovedWorkspaces: []agent.ID{id(101)}})
	register(t, s, id(1))
	time.Sleep(2 * time.Millisecond)
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(2)}})
	got := removals(time.Hour)
	one, two := agent.Removal{ID: id(1)}, agent.Removal{ID: id(2)}
	require.Len(t, got, 4)
	require.Contains(t, got, agent.Removal{ID: id(3)})
	require.Contains(t, got, agent.Removal{ID: id(101), IsWorkspace: true})
	require.Greater(t, got[one], got[two])
	require.LessOrEqual(t, got[one], time.Since(began))

	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}})
	again := removals(time.Hour)
	require.Len(t, again, 4)
	require.Less(t, again[one], again[two], "the newest removal of each")
	require.Empty(t, removals(-time.Hour))
}
