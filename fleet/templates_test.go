package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/durations"
	"github.com/coder/agentstatsd/internal/bubble"
)

// The durations of a template's builds are served until an hour after its last
// workspace, and only those.
func TestBuildDurationsOfATemplateThatIsGone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		named := func(n, w int, organization, template string) agent.Registration {
			reg := build(n, w, 1, "main")
			reg.Workspace.Build.ID = nid(7000 + w)
			reg.Workspace.Organization, reg.Workspace.Template.Name = organization, template
			return reg
		}
		p := loaded(t, Options{}, named(1, 1, "acme", "go"), named(2, 2, "acme", "go"), named(3, 3, "acme", "java"), named(4, 4, "other", "go"))
		defer running(t, p)()
		for n := 1; n <= 4; n++ {
			result := agent.LifecycleReady
			if n == 2 {
				result = agent.LifecycleStartError
			}
			says(t, connect(t, p, n), built(1, time.Second), result)
		}
		written()
		failed, worked := "false acme error go start: 1 1", "false acme success go start: 1 1"
		others := []string{"false acme success java start: 1 1", "false other success go start: 1 1"}
		all := append([]string{failed, worked}, others...)
		require.ElementsMatch(t, all, observed(t, p))
		gone := func(w int) {
			_, err := p.Deregister(t.Context(), nil, []agent.ID{named(w, w, "", "").Workspace.ID})
			require.NoError(t, err)
		}

		gone(1)
		time.Sleep(2 * durations.Retention)
		require.ElementsMatch(t, all, observed(t, p), "one workspace has it still")
		gone(2)
		time.Sleep(durations.Retention - durations.ScanInterval)
		require.ElementsMatch(t, all, observed(t, p), "whoever scrapes is to see the last increase")

		// A workspace that comes back within the hour keeps the counts.
		_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{named(5, 5, "acme", "go")}})
		require.NoError(t, err)
		time.Sleep(2 * durations.Retention)
		require.ElementsMatch(t, all, observed(t, p))

		// It is made from another template now: the old one has none.
		moved := named(5, 5, "acme", "java")
		_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{moved}})
		require.NoError(t, err)
		time.Sleep(durations.Retention + durations.ScanInterval + time.Second)
		require.ElementsMatch(t, others, observed(t, p))

		// A build that is observed after its workspace went stays as long.
		f := p.Fleet
		w := named(1, 1, "acme", "go").Workspace
		f.metrics.builds.Observe(&w, durations.StatusSuccess, 1, time.Now())
		time.Sleep(durations.Retention - durations.ScanInterval)
		require.ElementsMatch(t, append([]string{worked}, others...), observed(t, p))
		time.Sleep(2*durations.ScanInterval + time.Second)
		require.ElementsMatch(t, others, observed(t, p))
		require.Len(t, f.registry.templates, 2)
	})
}
