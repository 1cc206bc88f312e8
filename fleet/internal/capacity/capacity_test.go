package capacity_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/fleet/internal/capacity"
)

// use is that of so many agents and workspaces, of which each takes 110 and 1,020 bytes.
func use(agents, workspaces int) capacity.Use {
	return capacity.Use{
		Agents: agents, Workspaces: workspaces,
		KeptBytes: int64(agents)*10 + int64(workspaces)*20, AgentBytes: 100, WorkspaceBytes: 1000,
	}
}

// Up to a limit all is taken in. Above it, nothing that makes it more.
func TestCheck(t *testing.T) {
	limits := capacity.Limits{Agents: 4, Bytes: 4000}
	for name, c := range map[string]struct {
		now, next capacity.Use
		err       string
		is        error
	}{
		"as many agents":                  {use(3, 1), use(4, 1), "", nil},
		"too many agents":                 {use(4, 1), use(5, 1), "too many registrations: want at most 4 agents (--max-agents), got 5", capacity.ErrTooMany},
		"still too many agents":           {use(7, 1), use(7, 1), "", nil},
		"as many workspaces":              {use(0, 2), use(0, 3), "", nil},
		"too many workspaces":             {use(0, 4), use(0, 5), "too many registrations: want at most 4 workspaces (--max-agents), got 5", capacity.ErrTooMany},
		"fewer, still too many":           {use(0, 6), use(0, 5), "", nil},
		"too large":                       {use(1, 3), use(0, 4), "too large registrations: want at most 4000 bytes in memory of all (--max-registrations-bytes), got 4080", capacity.ErrTooLarge},
		"still too large":                 {use(0, 4), use(0, 4), "", nil},
		"smaller, still too large":        {use(1, 4), use(0, 4), "", nil},
		"larger, fewer agents":            {use(4, 3), use(3, 4), "too large registrations: want at most 4000 bytes in memory of all (--max-registrations-bytes), got 4410", capacity.ErrTooLarge},
		"fewer of the one, not the other": {use(7, 1), use(6, 5), "too many registrations: want at most 4 workspaces (--max-agents), got 5", capacity.ErrTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.next.Check(c.now, limits)
			require.ErrorIs(t, err, c.is)
			if c.err != "" {
				require.EqualError(t, err, c.err)
			}
		})
	}
}

// What exceeds a limit is said with the limit and the value.
func TestExcess(t *testing.T) {
	limits := capacity.Limits{Agents: 4, Bytes: 4000}
	require.Zero(t, use(4, 3).Excess(limits))
	require.Equal(t, capacity.Excess{Reason: "max_agents", Limit: 4, Used: 5}, use(5, 1).Excess(limits))
	require.Equal(t, capacity.Excess{Reason: "max_agents", Limit: 4, Used: 6}, use(1, 6).Excess(limits))
	require.Equal(t, capacity.Excess{Reason: "max_bytes", Limit: 4000, Used: 4080}, use(0, 4).Excess(limits))
}
