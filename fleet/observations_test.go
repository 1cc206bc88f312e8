package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// Agents that coderd sees connected count at the replica that has the share, those with a
// session where that is. Each counts once, also after the share moves, and after a session
// ended.
func TestObservationsOnReplicas(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		c.setServing(replicaID(1), false)
		seen := func(n int, name string) agent.Registration {
			return with(registration(n, 1, 1), func(reg *agent.Registration) {
				reg.Name = name
				reg.Observed = agent.Observation{At: time.Now(), Status: agent.StatusConnected, Lifecycle: agent.Lifecycle{State: agent.LifecycleReady}}
			})
		}
		register := func() {
			t.Helper()
			time.Sleep(time.Second)
			_, err := r[1].Register(t.Context(), Set{Agents: []agent.Registration{seen(1, "a"), seen(2, "b"), seen(3, "c")}})
			require.NoError(t, err)
			awaitReplicas()
		}
		requireUp := func(want ...string) {
			t.Helper()
			awaitReplicas()
			var got []string
			for _, p := range r {
				up := "none"
				for _, line := range p.states.all() {
					if strings.HasPrefix(line, "up{") {
						up = line[strings.LastIndexByte(line, ' ')+1:]
					}
				}
				got = append(got, up)
			}
			require.Equal(t, want, got)
			// Each agent once, and ready.
			var agents []string
			for _, p := range r {
				for _, line := range p.states.all() {
					if strings.HasPrefix(line, "connections{") {
						require.Contains(t, line, "lifecycle_state=ready")
						agents = append(agents, line[:len("connections{agent_name=x")])
					}
				}
			}
			slices.Sort(agents)
			require.Equal(t, []string{"connections{agent_name=a", "connections{agent_name=b", "connections{agent_name=c"}, agents)
		}
		register()
		requireUp("3", "none")
		s := connectTo(t, r[1], 1, hello(1, 1))
		requireUp("2", "1")
		register()
		requireUp("2", "1")
		c.setServing(replicaID(0), false)
		c.setServing(replicaID(1), true)
		requireUp("none", "3")
		s.Close(EndDisconnect)
		requireUp("none", "2")
		register()
		requireUp("none", "3")

		s = connectTo(t, r[0], 2, hello(2, 1))
		requireUp("1", "2")
		s.Close(EndDisconnect)
		requireUp("none", "2")
	})
}

// A service that starts serves what coderd saw of agents that never had a session. When the
// others were seen it does not know.
func TestLoadObservations(t *testing.T) {
	j := &journal{}
	s := newMemStore(j)
	p := newPartsOn(t, Options{}, s, j)
	require.NoError(t, p.Load(t.Context()))
	seen := func(r *agent.Registration) {
		r.Observed = agent.Observation{At: time.Now().Add(-time.Minute), Status: agent.StatusConnected}
	}
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{with(registration(1, 1, 1), seen), with(registration(2, 2, 1), seen)}})
	require.NoError(t, err)
	s.sessions[nid(2)] = agent.SessionRecord{Agent: nid(2), Epoch: 1}
	again := newPartsOn(t, Options{}, s, j)
	require.NoError(t, again.Load(t.Context()))
	for n, want := range map[int]agent.Status{1: agent.StatusConnected, 2: agent.StatusDisconnected} {
		info, err := again.Agent(nid(n))
		require.NoError(t, err)
		require.Equal(t, want, info.Status)
	}
}

// What a service publishes when it starts is what it published before, with workspaces that
// others hide and agents that coderd saw.
func TestLoadPublishesAll(t *testing.T) {
	j := &journal{}
	s := newMemStore(j)
	p := newPartsOn(t, Options{WorkspaceInfo: true}, s, j)
	require.NoError(t, p.Load(t.Context()))
	var set Set
	for n := range 3 * publishedAtOnce {
		set.Agents = append(set.Agents, with(registration(n+1, n/2+1, n%3), func(r *agent.Registration) {
			r.Name = fmt.Sprint("agent ", n%2)
			if r.Workspace.Name = fmt.Sprint("ws", n/2); n >= 2*publishedAtOnce {
				r.Workspace.Name = fmt.Sprint("ws", n/8) // four have it
			}
			if n%5 == 0 {
				r.Observed = agent.Observation{At: time.Now().Add(-time.Minute), Status: agent.StatusConnected}
			}
		}))
	}
	for n := range 2 * publishedAtOnce { // of one workspace
		set.Agents = append(set.Agents, with(registration(500+n, 500, 1), func(r *agent.Registration) { r.Name = fmt.Sprint("agent ", n) }))
	}
	_, err := p.Register(t.Context(), set)
	require.NoError(t, err)
	again := newPartsOn(t, Options{WorkspaceInfo: true}, s, j)
	require.NoError(t, again.Load(t.Context()))
	before := p.states.all()
	require.Greater(t, len(before), 2*publishedAtOnce)
	require.Equal(t, before, again.states.all())
	require.Equal(t, publishedAtOnce, again.states.largest)
}

// A replica that starts counts who is connected where, as those that run.
func TestLoadCountsConnections(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{
			registration(1, 1, 1),
			with(registration(2, 2, 1), func(reg *agent.Registration) {
				reg.Observed = agent.Observation{At: time.Now(), Status: agent.StatusConnected}
			}),
		}})
		require.NoError(t, err)
		s := connectTo(t, r[0], 1, hello(1, 1))
		reportOn(t, s, 1)
		awaitReplicas()
		r = append(r, startReplica(t, c, r[0].store, 2, Options{}))
		awaitReplicas()
		counts := func(p parts, workspace int) [3]int32 {
			w := p.registry.workspaces.Get(nid(1000 + workspace))
			w.up.mu.Lock()
			defer w.up.mu.Unlock()
			return [3]int32{w.up.local, w.up.remote, w.up.observed}
		}
		require.Equal(t, [3]int32{1, 0, 0}, counts(r[0], 1))
		for _, p := range r[1:] {
			require.Equal(t, [3]int32{0, 1, 0}, counts(p, 1))
		}
		for _, p := range r {
			require.Equal(t, [3]int32{0, 0, 1}, counts(p, 2))
		}
		s.Close(EndDisconnect)
		awaitReplicas()
		for _, p := range r {
			require.Zero(t, counts(p, 1))
		}
		require.Zero(t, connectedIn(t, "ws1", r...))
	})
}
