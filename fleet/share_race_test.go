package fleet

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// repeat calls f in a goroutine until stop is called, which waits for it.
func repeat(f func()) (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				f()
				runtime.Gosched()
			}
		}
	})
	return func() {
		close(done)
		running.Wait()
	}
}

// Shares and membership change while agents are registered, renamed, moved between
// workspaces, removed and connect. Then what is published is what would be if all were
// published anew, and what is known of the registrations adds up. Of none nothing is left.
func TestSharesMoveDuringChanges(t *testing.T) {
	for seed := range uint64(30) {
		c := newCluster()
		p := joined(t, c, newMemStore(&journal{}), 0, Options{})
		moves := rand.New(rand.NewPCG(seed, 1))
		stopMoves := repeat(func() {
			c.setLive(replicaID(moves.IntN(3)), moves.IntN(4) > 0)
			c.setServing(replicaID(moves.IntN(3)), moves.IntN(4) > 0)
			p.peers.shares.Refresh()
		})
		stopScans := repeat(func() { p.scan(time.Now()) })
		random := rand.New(rand.NewPCG(seed, 2))
		var sessions []*Session
		for range 120 {
			n := 1 + random.IntN(20)
			var err error
			switch random.IntN(6) {
			case 0:
				_, err = p.Deregister(t.Context(), ids(n), nil)
			case 1:
				_, err = p.Deregister(t.Context(), nil, []agent.ID{registration(n, n, 1).Workspace.ID})
			case 2:
				if _, err := p.entry(nid(n)); err == nil {
					s, err := p.Connect(t.Context(), nid(n), hello(1, 1))
					require.NoError(t, err)
					sessions = append(sessions, s)
				}
			default:
				reg := registration(n, 1+(n+random.IntN(2))%20, 1+random.IntN(5))
				reg.Workspace.Name = string('a' + rune(random.IntN(6)))
				_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{reg}})
			}
			require.NoError(t, err)
		}
		stopMoves()
		stopScans()
		p.peers.shares.Refresh()

		published, kept := p.states.all(), int64(0)
		for w := range p.registry.workspaces.All() {
			kept += w.reg.Load().Bytes()
			w.up.mu.Lock()
			p.publishUpLocked(w)
			w.up.mu.Unlock()
			p.publishPresence(w.agents)
			for _, e := range w.agents {
				require.Same(t, w, e.workspace)
				require.Same(t, w.reg.Load(), e.reg.Load().Workspace)
			}
		}
		require.Equal(t, p.states.all(), published, "seed %d", seed)
		for _, e := range p.registry.order {
			kept += e.reg.Load().Bytes()
		}
		require.Equal(t, kept, p.registry.keptBytes)

		var all []agent.ID
		for w := range p.registry.workspaces.All() {
			all = append(all, w.reg.Load().ID)
		}
		_, err := p.Deregister(t.Context(), nil, all)
		require.NoError(t, err)
		require.Zero(t, p.registry.Use().Bytes())
		require.Zero(t, p.registry.tokens.Len()+p.registry.byLabels.Len()+len(p.registry.next)+len(p.registry.templates)+len(p.registry.order))
		require.Empty(t, p.states.all())
		for _, s := range sessions {
			require.True(t, closed(s.Done()))
		}
	}
}
