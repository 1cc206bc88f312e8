package fleet

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// Every replica knows which one has an agent's session, and whether it has reported.
func TestSessionOfAnAgent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
		require.NoError(t, err)
		s := connectTo(t, r[0], 1, hello(1, 1))
		session := func(p parts) agent.SessionRecord {
			awaitReplicas()
			info, err := p.Agent(nid(1))
			require.NoError(t, err)
			return info.Session
		}
		want := agent.SessionRecord{Agent: nid(1), Epoch: s.info.Epoch, Replica: replicaID(0), Open: true}
		for range 2 {
			for _, p := range r {
				require.Equal(t, want, session(p))
			}
			reportOn(t, s, 1)
			want.Reported = true
		}
	})
}

// All registered agents come, in order, until the caller has enough.
func TestAll(t *testing.T) {
	p := loaded(t, Options{}, registration(2, 2, 1), registration(1, 1, 1), registration(3, 3, 1))
	var seen []agent.ID
	for reg := range p.All {
		if seen = append(seen, reg.ID); len(seen) == 2 {
			break
		}
	}
	require.Equal(t, ids(1, 2), seen)
	for reg := range p.All {
		seen = append(seen, reg.ID)
	}
	require.Equal(t, ids(1, 2, 1, 2, 3), seen)
}

// What was removed is remembered with its names, on the replica that removed it and on
// the others.
func TestDeparted(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 2)
		for _, set := range []Set{{Agents: []agent.Registration{registration(1, 1, 1)}}, {Agents: []agent.Registration{registration(2, 1, 2)}}} {
			_, err := r[0].Register(t.Context(), set)
			require.NoError(t, err)
			awaitReplicas()
		}
		_, err := r[1].Deregister(t.Context(), nil, []agent.ID{nid(1001)})
		require.NoError(t, err)
		awaitReplicas()
		for _, p := range r {
			var gone []agent.ID
			for n, d := range p.Departed() {
				reg := registration(n+1, 1, n+1)
				require.Equal(t, reg.Identity(), d.Identity)
				require.Equal(t, reg.Workspace.ID, d.WorkspaceID)
				require.False(t, d.At.IsZero())
				gone = append(gone, d.ID)
			}
			require.Equal(t, ids(1, 2), gone)
		}
	})
}
