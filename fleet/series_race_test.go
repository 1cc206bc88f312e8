package fleet

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
)

// Agents come, speak and go while coderd renames, rebuilds and removes them and
// others watch. At the end the series are those that are made from scratch.
func TestStatesUnderConcurrentChanges(t *testing.T) {
	p := loaded(t, Options{})
	var wg sync.WaitGroup
	const rounds = 200
	check := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	cancel := p.Watch(func([]agent.ID) {})
	for n := 1; n <= 4; n++ {
		wg.Go(func() {
			for i := range rounds {
				s, err := p.Connect(t.Context(), nid(n), Hello{Instance: instanceID(byte(i)), Ordinal: 1})
				if err != nil {
					continue
				}
				_ = s.Receive(time.Now(), 1, func(r Request) { r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
				_ = s.Receive(time.Now(), 2, func(r Request) { r.SetNetwork(agent.Network{NodeID: uint64(i)}, 0) })
				if i%3 > 0 {
					s.Close(EndDisconnect)
				}
			}
		})
		wg.Go(func() {
			for i := range rounds {
				reg := registration(n, n%2, 1+i%3)
				reg.Workspace.Name = []string{"ws", "ws", "other"}[i%3]
				_, err := p.Register(context.Background(), Set{Agents: []agent.Registration{reg}})
				check(err)
				if i%7 == 0 {
					_, err = p.Deregister(context.Background(), ids(n), nil)
					check(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range rounds {
			p.scan(time.Now())
			check(p.write(context.Background()))
			p.List(uuid.Nil, 10)
		}
	})
	wg.Wait()
	cancel()
	w := &stateWorld{parts: p, online: map[agent.ID]bool{}, seen: map[agent.ID]bool{}}
	for _, e := range p.registry.order {
		w.online[e.id], w.seen[e.id] = e.liveLocked() != nil, e.history().newest.Epoch != 0
	}
	w.checkSeries(t)
}
