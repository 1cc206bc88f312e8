package pushed

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// passedText is what a coderd has of agents: its own view of them, what they forward, and
// what it counts of them.
const passedText = `
# TYPE coderd_agents_up gauge
coderd_agents_up{username="ada",workspace_name="ws"} %v
# HELP agent_total ` + metrics.ForwardedHelp + `
# TYPE agent_total counter
agent_total{agent_name="main",username="ada",workspace_name="ws"} %v
# TYPE coderd_agentapi_metadata_flushed_total counter
coderd_agentapi_metadata_flushed_total %v
# TYPE coderd_own_total counter
coderd_own_total %v
`

// What agents have is served from the pushes that declare it, of each series the newest.
// It is served only while an instance that is alive declares it.
func TestPassThrough(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	push := func(f *Families, now time.Time, id byte, snapshot int64, passThrough bool, values ...any) []agent.PushRefusal {
		t.Helper()
		refused, err := f.Push(context.Background(), now, agent.Push{
			Replica: "coderd", Instance: instanceID(id), Interval: 10 * time.Second, Snapshot: snapshot, PassThrough: passThrough,
			Families: serialize(t, parseText(t, fmt.Sprintf(passedText, values...))...),
		})
		require.NoError(t, err)
		return refused
	}
	served := func(f *Families) map[string]float64 {
		t.Helper()
		out := make(map[string]float64)
		for series, value := range check(t, f) {
			_, name, _ := strings.Cut(series, `__name__="`)
			name, _, _ = strings.Cut(name, `"`)
			out[name] = value
		}
		return out
	}
	names := map[string]bool{"coderd_agents_up": true, "agent_total": true, "coderd_agentapi_metadata_flushed_total": true}

	require.Len(t, push(f, start, 1, 1, false, 1, 1, 1, 1), 3)
	require.Equal(t, map[string]float64{"coderd_own_total": 1}, served(f))
	require.Empty(t, f.Passed())

	require.Empty(t, push(f, start.Add(time.Second), 1, 2, true, 1, 50, 3, 2))
	require.Empty(t, push(f, start.Add(2*time.Second), 2, 1, true, 0, 70, 4, 10))
	require.Equal(t, map[string]float64{
		"coderd_own_total": 12, "coderd_agents_up": 0, "agent_total": 70, "coderd_agentapi_metadata_flushed_total": 7,
	}, served(f))
	require.Equal(t, names, f.Passed())
	// The agent moves: of a counter of an agent no instance has a part.
	require.Empty(t, push(f, start.Add(3*time.Second), 1, 3, true, 1, 71, 3, 2))
	require.Equal(t, 71.0, served(f)["agent_total"])
	require.Equal(t, 0.0, served(f)["coderd_agents_up"], "that which changed last")

	// Another replica has the same, from the rows.
	other := open(t, store, Options{})
	require.Equal(t, served(f), served(other))
	require.Equal(t, names, other.Passed())

	// When the instance has relays in its place, the service computes what it did before.
	require.Len(t, push(f, start.Add(4*time.Second), 1, 4, false, 1, 71, 3, 2), 3)
	require.Equal(t, names, f.Passed(), "the other instance passes through")
	require.Equal(t, 70.0, served(f)["agent_total"])
	require.Len(t, push(f, start.Add(5*time.Second), 2, 2, false, 1, 71, 3, 10), 3)
	require.Equal(t, map[string]float64{"coderd_own_total": 12}, served(f))
	require.Empty(t, f.Passed())

	// What passes through goes with its instance, counters of agents too.
	require.Empty(t, push(f, start.Add(6*time.Second), 1, 5, true, 1, 72, 8, 3))
	require.Equal(t, 72.0, served(f)["agent_total"])
	f.expire(start.Add(6*time.Second + 2*time.Minute))
	require.Equal(t, map[string]float64{"coderd_own_total": 13}, served(f))
	require.Empty(t, f.Passed())
}

// The service's own process stays its own.
func TestPassThroughOfOwnFamilies(t *testing.T) {
	f := open(t, new(memory), Options{})
	for i, name := range []string{"go_goroutines", "agentstatsd_x", "up", "process_open_fds"} {
		refused, err := f.Push(context.Background(), start, agent.Push{
			Instance: instanceID(byte(i + 1)), Interval: time.Second, Snapshot: 1, PassThrough: true,
			Families: serialize(t, parseText(t, "# TYPE "+name+" gauge\n"+name+" 1\n")...),
		})
		require.NoError(t, err)
		require.Len(t, refused, 1)
		require.Equal(t, string(metrics.ReasonOwnedByService), refused[0].Reason)
	}
}
