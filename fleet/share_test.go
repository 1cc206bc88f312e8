package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/shares"
	"github.com/coder/agentstatsd/internal/bubble"
)

// whereServed returns which replica serves the state of the agent of each workspace and how
// many of its agents are connected. It fails if that is not one replica.
func whereServed(t *testing.T, replicas ...parts) map[string]agent.ID {
	t.Helper()
	agents, workspaces := make(map[string]agent.ID), make(map[string]agent.ID)
	for _, p := range replicas {
		for _, line := range p.states.all() {
			at := agents
			switch family, _, _ := strings.Cut(line, "{"); family {
			case "up":
				at = workspaces
			case "connections":
			default:
				continue
			}
			name := labelOf(line, "workspace_name")
			require.NotContains(t, at, name, "it is served once: %s", line)
			at[name] = p.self()
		}
	}
	require.Equal(t, workspaces, agents, "an agent goes with its workspace")
	return agents
}

// moved returns the workspaces that are served elsewhere than before.
func moved(before, after map[string]agent.ID) (names []string) {
	for name, at := range after {
		if before[name] != at {
			names = append(names, name)
		}
	}
	return names
}

// registerMany registers n agents, each in a workspace ws1 to wsN of its own.
func registerMany(t *testing.T, p parts, n int) {
	t.Helper()
	var set Set
	for i := 1; i <= n; i++ {
		set.Agents = append(set.Agents, with(registration(i, i, 1), func(r *agent.Registration) { r.Apps = nil }))
	}
	_, err := p.Register(t.Context(), set)
	require.NoError(t, err)
}

// Each workspace without a connected agent is served by one replica, with its agents. Where
// a replica comes, leaves or dies only its share moves, at once, and nobody else publishes
// anything.
func TestShares(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const count = 400
		c, r := startReplicas(t, 3)
		registerMany(t, r[0], count)
		awaitReplicas()
		before := whereServed(t, r...)
		require.Len(t, before, count)
		of := make(map[agent.ID]int)
		for name, at := range before {
			of[at]++
			want, _ := shares.New(agent.ID{}, []agent.ID{replicaID(0), replicaID(1), replicaID(2)}).Owner("ada", name)
			require.Equal(t, want, at)
		}
		for _, p := range r {
			require.InDelta(t, count/3, of[p.self()], count/12)
		}
		// change returns what moves at once by what is done.
		change := func(do func()) (names []string, sets []int) {
			t.Helper()
			sets = make([]int, len(r))
			for i, p := range r {
				sets[i] = -p.states.count()
			}
			do()
			synctest.Wait()
			for i := range sets {
				sets[i] += r[i].states.count()
			}
			now := whereServed(t, r...)
			require.Len(t, now, count)
			names = moved(before, now)
			before = now
			return names, sets
		}

		late := newPartsOn(t, Options{}, r[0].store, &journal{})
		late.Join(membership{c, replicaID(3)}, membership{c, replicaID(3)})
		r = append(r, late)
		names, sets := change(func() {
			c.setLive(replicaID(3), true)
			t.Cleanup(running(t, late))
		})
		for _, name := range names {
			require.Equal(t, replicaID(3), before[name])
		}
		require.InDelta(t, count/4, len(names), count/12)
		require.Equal(t, 2*len(names), sets[0]+sets[1]+sets[2], "of each that moves the agent and the workspace")

		names, sets = change(func() { c.setServing(replicaID(1), false) }) // it leaves
		require.Equal(t, 2*len(names), sets[1])
		require.Equal(t, 2*len(names), sets[0]+sets[2]+sets[3])
		again, _ := change(func() { c.setServing(replicaID(1), true) })
		require.ElementsMatch(t, names, again, "the same ones come back")
		names, _ = change(func() { c.setLive(replicaID(1), false) }) // it is killed
		require.ElementsMatch(t, names, again)
		require.Empty(t, r[1].states.all())
		for name, at := range before {
			require.NotEqual(t, replicaID(1), at, name)
		}
	})
}

// A replica that stops has withdrawn all when it has stopped, and one that starts serves
// nothing before it says that it serves.
func TestSharesOfStartAndStop(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 1)
		registerMany(t, r[0], 20)
		awaitReplicas()
		late := joined(t, c, r[0].store, 1, Options{})
		require.Empty(t, late.states.all())
		stop := running(t, late)
		synctest.Wait()
		require.NotEmpty(t, late.states.all())
		require.Len(t, whereServed(t, r[0], late), 20)
		stop()
		require.Empty(t, late.states.all())
		c.setServing(replicaID(1), false)
		synctest.Wait()
		require.Len(t, whereServed(t, r[0]), 20)
	})
}

// Of two workspaces with equal labels the newer one is served, by the same replica.
func TestEqualLabelsMeet(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 3)
		same := func(n, build int) agent.Registration {
			return with(registration(n, n, build), func(r *agent.Registration) {
				r.Workspace.Name, r.Name, r.Workspace.Template.Version = "same", fmt.Sprintf("agent%d", n), fmt.Sprint(n)
			})
		}
		for n := 1; n <= 9; n++ {
			_, err := r[n%3].Register(t.Context(), Set{Agents: []agent.Registration{same(n, n)}})
			require.NoError(t, err)
		}
		awaitReplicas()
		owner := whereServed(t, r...)["same"]
		for i := range r {
			c.setServing(replicaID(i), false)
			synctest.Wait()
			at := whereServed(t, r...)
			require.Len(t, at, 1)
			require.Equal(t, replicaID(i) == owner, at["same"] != owner, "it moves when its replica leaves")
			for line := range served(t, r...) {
				if strings.HasPrefix(line, "connections{") {
					require.Equal(t, "agent9", labelOf(line, "agent_name"))
				}
			}
			c.setServing(replicaID(i), true)
			synctest.Wait()
		}
	})
}

// An agent with a session is served where that is, whoever has the share. Its siblings
// without one are served by who has that.
func TestSessionsBeatShares(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 3)
		sibling := with(registration(2, 1, 1), func(r *agent.Registration) { r.Name = "other" })
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1), sibling}})
		require.NoError(t, err)
		awaitReplicas()
		at := func(name string) (ids []agent.ID) {
			for _, p := range r {
				for _, line := range p.states.all() {
					if strings.HasPrefix(line, "connections{") && labelOf(line, "agent_name") == name {
						ids = append(ids, p.self())
					}
				}
			}
			return ids
		}
		owner := at("other")
		for i := range r {
			s := connectTo(t, r[i], 1, hello(1, int64(i+1)))
			awaitReplicas()
			require.Equal(t, []agent.ID{replicaID(i)}, at("main"))
			require.Equal(t, owner, at("other"))
			require.Equal(t, 1.0, connectedIn(t, "ws1", r...))
			c.setServing(replicaID(i), false) // it leaves, with the session
			synctest.Wait()
			require.Equal(t, []agent.ID{replicaID(i)}, at("main"))
			require.Len(t, at("other"), 1)
			require.Equal(t, owner[0] == replicaID(i), at("other")[0] != owner[0])
			c.setServing(replicaID(i), true)
			synctest.Wait()
			s.Close(EndDisconnect)
		}
		awaitReplicas()
		require.Equal(t, owner, at("main"))
		require.Equal(t, owner, at("other"))

		// A replica that the others consider gone serves neither.
		s := connectTo(t, r[0], 1, hello(1, 9))
		awaitReplicas()
		c.setLive(replicaID(0), false)
		synctest.Wait()
		require.Empty(t, r[0].states.all())
		require.False(t, closed(s.Done()))
		require.Len(t, at("main"), 1)
		require.Len(t, at("other"), 1)
	})
}

// Registrations change while shares move in slices. At the end each is served by who has
// it, and nothing else.
func TestSharesMoveUnderChanges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const count, rounds = 20 * sharesSlice, 30
		c, r := startReplicas(t, 2)
		registrationOf := func(n, name int) agent.Registration {
			reg := with(registration(1, 1, 1), func(r *agent.Registration) { r.Apps = nil })
			reg.ID, reg.Workspace.ID = agent.ID{1, 14: byte(n >> 8), 15: byte(n)}, agent.ID{2, 14: byte(n >> 8), 15: byte(n)}
			reg.TokenHash = [32]byte{1, 30: byte(n >> 8), 31: byte(n)}
			reg.Workspace.Name = fmt.Sprintf("ws%d", name)
			return reg
		}
		var set Set
		for n := range count {
			set.Agents = append(set.Agents, registrationOf(n, n))
		}
		_, err := r[0].Register(t.Context(), set)
		require.NoError(t, err)
		awaitReplicas()
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range rounds {
				c.setServing(replicaID(1), i%2 == 1)
				r[0].peers.passes.Ask()
				time.Sleep(100 * time.Millisecond)
			}
		})
		names := make(map[string]bool)
		for n := range count {
			names[fmt.Sprintf("ws%d", n)] = true
		}
		for i := range rounds {
			n := i * count / rounds
			_, err := r[i%2].Register(context.Background(), Set{Agents: []agent.Registration{registrationOf(n, count+n), registrationOf(count+i, 2*count+i)}})
			require.NoError(t, err)
			_, err = r[i%2].Deregister(context.Background(), nil, []agent.ID{registrationOf(n+1, 0).Workspace.ID})
			require.NoError(t, err)
			delete(names, fmt.Sprintf("ws%d", n))
			delete(names, fmt.Sprintf("ws%d", n+1))
			names[fmt.Sprintf("ws%d", count+n)], names[fmt.Sprintf("ws%d", 2*count+i)] = true, true
		}
		wg.Wait()
		awaitReplicas()
		got := whereServed(t, r...)
		for name := range names {
			require.Contains(t, got, name)
		}
		require.Len(t, got, len(names))
	})
}

// BenchmarkShareMoves has a fourth replica come to three, and leave again: what one of the
// three does. Each workspace has one agent.
func BenchmarkShareMoves(b *testing.B) {
	for _, count := range []int{10_000, 50_000, 200_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			c := newCluster()
			f, err := New(newMemStore(&journal{}), quiet{}, quiet{}, Options{MaxAgents: count, MaxBytes: 1 << 40}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			require.NoError(b, err)
			for n := range 4 {
				c.setLive(replicaID(n), true)
				c.setServing(replicaID(n), n < 3)
			}
			f.Join(membership{c, replicaID(0)}, membership{c, replicaID(0)})
			require.NoError(b, f.Load(b.Context()))
			var set Set
			for n := range count {
				r := registration(1, 1, 1)
				r.ID, r.Workspace.ID = uuid.New(), uuid.New()
				r.TokenHash = [32]byte{1, 28: byte(n >> 24), 29: byte(n >> 16), 30: byte(n >> 8), 31: byte(n)}
				r.Workspace.OwnerUsername, r.Workspace.Name = fmt.Sprintf("user%d", n/4), fmt.Sprintf("workspace%d", n%4)
				set.Agents = append(set.Agents, r)
			}
			_, err = f.Register(b.Context(), set)
			require.NoError(b, err)
			b.ReportAllocs()
			serving := false
			for b.Loop() {
				serving = !serving
				c.setServing(replicaID(3), serving)
				f.peers.shares.Refresh()
			}
		})
	}
}
