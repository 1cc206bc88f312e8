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
	first := r.enqueue(60, a)
	second := r.enqueue(20, a)
	other := r.enqueue(30, b)
	require.True(t, first.hasRoom())
	require.False(t, second.hasRoom(), "the agent has one")
	require.True(t, other.hasRoom())
	large, small := r.enqueue(50, c), r.enqueue(5, d)
	given := r.enqueue(90, agent.ID{5})
	require.False(t, large.hasRoom())
	require.False(t, small.hasRoom(), "it would keep the large one waiting")
	other.release()
	require.False(t, large.hasRoom())
	require.Equal(t, 60, r.inUse())
	given.release() // it has waited too long
	first.release()
	for _, m := range []*receipt{second, large, small} {
		require.True(t, m.hasRoom())
	}
	require.Equal(t, 75, r.inUse())
	first.release()
	require.Equal(t, 75, r.inUse(), "it has left already")
	relay := []*receipt{r.enqueue(10, agent.ID{}), r.enqueue(10, agent.ID{})} // coderd's
	for _, m := range append(relay, second, large, small) {
		require.True(t, m.hasRoom())
		m.release()
	}
	require.Zero(t, r.inUse())
	require.Empty(t, r.of)
	require.Empty(t, r.queue)
}

// A raised limit gives room at once. What is above a lowered one has room alone.
func TestReceivingWithAnotherLimit(t *testing.T) {
	r := newReceiving(100)
	first, second := r.enqueue(60, agent.ID{1}), r.enqueue(60, agent.ID{2})
	require.False(t, second.hasRoom())
	r.setLimit(120)
	require.True(t, second.hasRoom())
	r.setLimit(50)
	third, fourth := r.enqueue(60, agent.ID{3}), r.enqueue(10, agent.ID{4})
	first.release()
	require.False(t, third.hasRoom())
	second.release()
	require.True(t, third.hasRoom())
	require.False(t, fourth.hasRoom())
	third.release()
	require.True(t, fourth.hasRoom())
	fourth.release()
	require.Zero(t, r.inUse())
}
