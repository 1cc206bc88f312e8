package fleet

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
)

// Whatever happens, once things are quiet each agent is served once, as it is.
func TestReplicasAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		bubble.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			const agents, count = 6, 3
			c, r := startReplicas(t, count)
			var set Set
			for n := 1; n <= agents; n++ {
				set.Agents = append(set.Agents, registration(n, n, 1))
			}
			_, err := r[0].Register(t.Context(), set)
			require.NoError(t, err)
			awaitReplicas()
			type where struct {
				session *Session
				replica int
				ordinal int64
			}
			at := make([]where, agents+1)
			live := []bool{true, true, true}
			for step := range 60 {
				n, to := 1+random.IntN(agents), random.IntN(count)
				w := &at[n]
				switch random.IntN(8) {
				case 0, 1, 2: // connects anywhere, whether or not it is connected
					w.ordinal++
					w.session, w.replica = connectTo(t, r[to], n, hello(byte(n), w.ordinal)), to
				case 3, 4:
					if w.session != nil && !closed(w.session.Done()) {
						reportOn(t, w.session, int64(step+1))
					}
				case 5:
					if w.session != nil {
						w.session.Close([]End{EndDisconnect, EndGoodbye}[random.IntN(2)])
						w.session = nil
					}
				case 6: // is cut off, or comes back; its agents notice nothing
					live[to] = !live[to]
					c.setLive(replicaID(to), live[to])
				case 7:
					c.setCut(random.IntN(2) == 0, r[to])
				}
				time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
			}
			for i := range live {
				c.setLive(replicaID(i), true)
			}
			awaitReplicas()
			for n := 1; n <= agents; n++ {
				want := "disconnected"
				switch w := at[n]; {
				case w.ordinal == 0:
					want = "connecting"
				case w.session != nil:
					want = "connected"
					require.False(t, closed(w.session.Done()), "seed %d: the newest session of agent %d lives", seed, n)
				}
				workspace := fmt.Sprintf("ws%d", n)
				require.Equal(t, want, statusOf(t, workspace, r...), "seed %d: agent %d", seed, n)
				require.Equal(t, want == "connected", connectedIn(t, workspace, r...) == 1, "seed %d: agent %d", seed, n)
				for _, p := range r {
					info, err := p.Agent(nid(n))
					require.NoError(t, err)
					require.Equal(t, want, string(info.Status), "seed %d: agent %d", seed, n)
				}
			}
		})
	}
}
