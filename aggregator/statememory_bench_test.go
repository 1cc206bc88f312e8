package aggregator

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/coder/agentstatsd/agent"
)

// unreachableApps are those of each agent of unreachableStates, in turn.
var unreachableApps = [...]string{"code-server", "jupyter", "terminal"}

// unreachableState are the states of agent n that has no session, with its workspace's own:
// 3 to 5 series, as agents have 1 to 3 apps.
func unreachableState(n int) (ofAgent, ofWorkspace []agent.Series) {
	ident := benchIdentity(n)
	name := agent.Label{Name: "agent_name", Value: ident.AgentName}
	user, ws := agent.Label{Name: "username", Value: ident.Username}, agent.Label{Name: "workspace_name", Value: ident.WorkspaceName}
	ofAgent = append(ofAgent, agent.Series{Family: "coderd_agents_connections", Value: 1, Labels: []agent.Label{
		name, {Name: "lifecycle_state", Value: "created"}, {Name: "status", Value: "connecting"}, {Name: "tailnet_node", Value: "unknown"}, user, ws,
	}})
	for i := range 1 + n%len(unreachableApps) {
		ofAgent = append(ofAgent, agent.Series{Family: "coderd_agents_apps", Value: 1, Labels: []agent.Label{
			name, {Name: "app_name", Value: unreachableApps[i]}, {Name: "health", Value: "initializing"}, user, ws,
		}})
	}
	return ofAgent, []agent.Series{{Family: "coderd_agents_up", Labels: []agent.Label{{Name: "template_name", Value: ident.TemplateName}, user, ws}}}
}

func setUnreachable(a *Aggregator, n int) {
	ofAgent, ofWorkspace := unreachableState(n)
	_ = a.SetStates([]agent.KeySeries{
		{Key: agent.SeriesKey{ID: benchID(n)}, Series: ofAgent},
		{Key: agent.SeriesKey{Workspace: true, ID: benchID(n)}, Series: ofWorkspace},
	})
}

// BenchmarkStateMemory is what the states of an agent without a session take, with those of its
// workspace. They are 4 series on average.
func BenchmarkStateMemory(b *testing.B) {
	for _, agents := range []int{10_000, 50_000, 200_000} {
		b.Run(fmt.Sprint(agents), func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(stateMemory(b, agents), "B/agent")
			}
		})
	}
}

// stateMemory returns the bytes of heap that each of that many agents takes.
func stateMemory(tb testing.TB, agents int) float64 {
	tb.Helper()
	a := newTest(tb, Options{})
	before := heap()
	for n := range agents {
		setUnreachable(a, n)
	}
	bytes := float64(heap()-before) / float64(agents)
	runtime.KeepAlive(a)
	return bytes
}
