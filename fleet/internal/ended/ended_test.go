package ended

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func nth(n int) (id agent.ID) {
	binary.BigEndian.PutUint32(id[:], uint32(n))
	return id
}

func epochs(sessions []Session) (all []int64) {
	for _, s := range sessions {
		all = append(all, s.Epoch)
	}
	return all
}

// Of one agent the last ten are remembered, of all as many as are allowed: the agents
// whose last session is the oldest are forgotten.
func TestSessions(t *testing.T) {
	s, err := New()
	require.NoError(t, err)
	for epoch := range 12 {
		s.Add(nth(0), Session{Epoch: int64(epoch)})
	}
	require.Equal(t, []int64{11, 10, 9, 8, 7, 6, 5, 4, 3, 2}, epochs(s.Of(nth(0))))
	require.Empty(t, s.Of(nth(1)))

	for n := 1; n <= most-perAgent; n++ {
		s.Add(nth(n), Session{Epoch: 1})
	}
	require.Equal(t, most, s.count)
	require.Len(t, s.Of(nth(0)), perAgent, "to look at an agent does not renew it")
	s.Add(nth(1), Session{Epoch: 2})
	require.Empty(t, s.Of(nth(0)))
	require.Equal(t, most-perAgent+1, s.count)
	for range perAgent {
		s.Add(nth(3), Session{Epoch: 2})
	}
	s.Add(nth(4), Session{Epoch: 2})
	require.Equal(t, most, s.count)
	require.Equal(t, []int64{2, 1}, epochs(s.Of(nth(1))))
	require.Empty(t, s.Of(nth(2)))

	s.Remove(nth(1))
	s.Remove(nth(1))
	require.Empty(t, s.Of(nth(1)))
	require.Equal(t, most-2, s.count)
}
