package grpcserver

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func (m *receipt) hasRoom() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// Large messages have room in the order in which they come, but for those of an agent
// that has one already.
func TestReceivingInLine(t *testing.T) {
	r := newReceiving(100)
	a, b, c, d := agent.ID{1}, agent.ID{2}, agent.ID{3}, agent.ID{4}
	first := r.enter(60, a)
	second := r.enter(20, a)
	other := r.enter(30, b)
	require.True(t, first.hasRoom())
	require.False(t, second.hasRoom(), "the agent has one")
	require.True(t, other.hasRoom())
	large, small := r.enter(50, c), r.enter(5, d)
	given := r.enter(90, agent.ID{5})
	require.False(t, large.hasRoom())
	require.False(t, small.hasRoom(), "it would keep the large one waiting")
	other.leave()
	require.False(t, large.hasRoom())
	require.Equal(t, 60, r.inUse())
	given.leave() // it has waited too long
	first.leave()
	for _, m := range []*receipt{second, large, small} {
		require.True(t, m.hasRoom())
	}
	require.Equal(t, 75, r.inUse())
	first.leave()
	require.Equal(t, 75, r.inUse(), "it has left already")
	relay := []*receipt{r.enter(10, agent.ID{}), r.enter(10, agent.ID{})} // coderd's
	for _, m := range append(relay, second, large, small) {
		require.True(t, m.hasRoom())
		m.leave()
	}
	require.Zero(t, r.inUse())
	require.Empty(t, r.of)
	require.Empty(t, r.line)
}
