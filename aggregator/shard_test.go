package aggregator

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// All series of a workspace are in one shard: those that its agents send, also after they
// were given another name, and those that are computed. Families without series have their
// headers in the first.
func TestShardsOfWorkspaces(t *testing.T) {
	a := newTest(t, Options{})
	const workspaces, shards = 60, 4
	for i := range byte(2 * workspaces) {
		ident := identity(fmt.Sprint("agent", i%2))
		ident.WorkspaceName = "before"
		a.Open(id(i), ident, agent.Session{Epoch: 1})
		a.Report(id(i), 1, time.Now(), samples(sample("x", agent.Gauge, 1), sample("y", agent.Counter, 1)))
		ident.WorkspaceName = fmt.Sprint("ws", i/2)
		a.Relabel(id(i), ident)
		require.NoError(t, a.SetState(agent.SeriesKey{ID: id(i)}, []agent.Series{{
			Family: "coderd_agents_up",
			Labels: []agent.Label{{Name: "agent_name", Value: ident.AgentName}, {Name: "username", Value: ident.Username}, {Name: "workspace_name", Value: ident.WorkspaceName}},
			Value:  1,
		}}))
	}
	found := regexp.MustCompile(`workspace_name="(ws\d+)"`)
	in, lines := make(map[string]int), make(map[string]int)
	for shard := range shards {
		var b bytes.Buffer
		require.NoError(t, a.Shard(metrics.Shard{Index: shard, Count: shards}).WriteText(&b))
		require.Equal(t, shard == 0, strings.Contains(b.String(), "# TYPE agent_scripts_executed_total"))
		require.Contains(t, b.String(), "# TYPE x gauge")
		for _, m := range found.FindAllStringSubmatch(b.String(), -1) {
			if in[m[1]] == 0 {
				in[m[1]] = shard + 1
			}
			require.Equal(t, in[m[1]], shard+1, m[1])
			lines[m[1]]++
		}
	}
	require.Len(t, lines, workspaces)
	whole := found.FindAllString(text(t, a), -1)
	require.GreaterOrEqual(t, len(whole), 2*3*workspaces)
	total := 0
	for _, n := range lines {
		total += n
	}
	require.Equal(t, len(whole), total)
}
