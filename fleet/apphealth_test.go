package fleet

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// Two replicas of which neither got the other's notifications write the health of
// two apps of one agent. What was acked as durable stays.
func TestAppHealthOfTwoReplicasIsMerged(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 2)
		reg := registration(1, 1, 1)
		reg.Apps = []agent.App{{ID: nid(501), Slug: "a"}, {ID: nid(502), Slug: "b"}}
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{reg}})
		require.NoError(t, err)
		awaitReplicas()
		c.setCut(true, r...)
		s := connectTo(t, r[0], 1, hello(1, 1))
		receive(t, s, 1, func(q Request) {
			require.Empty(t, q.SetAppHealth(map[agent.ID]agent.AppHealth{nid(501): agent.AppHealthUnhealthy}, nil))
		})
		for s.Progress().Durable < 1 {
			<-notified(s)
		}
		s.Close(EndDisconnect)
		s = connectTo(t, r[1], 1, hello(2, 1))
		receive(t, s, 1, func(q Request) {
			require.Empty(t, q.SetAppHealth(map[agent.ID]agent.AppHealth{nid(502): agent.AppHealthHealthy}, nil))
		})
		awaitReplicas()
		awaitReplicas()
		want := map[agent.ID]agent.AppHealth{nid(501): agent.AppHealthUnhealthy, nid(502): agent.AppHealthHealthy}
		require.Equal(t, want, r[0].store.state(nid(1)).AppHealth)
		c.setCut(false, r...)
		awaitReplicas()
		awaitReplicas()
		for _, p := range r {
			info, err := p.Agent(nid(1))
			require.NoError(t, err)
			require.Equal(t, want, info.State.AppHealth)
		}
	})
}
