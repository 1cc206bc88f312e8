package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// testTasks: a task has one holder, until it expires or is given back.
func testTasks(t *testing.T, s Store) {
	acquire := func(holder byte, d time.Duration, names ...string) []string {
		t.Helper()
		granted, counted, err := s.AcquireTasks(t.Context(), id(holder), names, "", d)
		require.Zero(t, counted)
		require.NoError(t, err)
		return granted
	}
	require.Equal(t, []string{"a", "b"}, acquire(1, time.Hour, "a", "b"))
	require.Equal(t, []string{"c"}, acquire(2, time.Hour, "a", "b", "c"))
	require.Equal(t, []string{"a"}, acquire(1, time.Hour, "a", "c"), "renewed")
	require.Empty(t, acquire(2, 0, "a", "c"))
	require.Equal(t, []string{"c"}, acquire(1, time.Hour, "c"), "given back; what another one has is not")
	require.Empty(t, acquire(2, time.Hour, "a"))
	require.Equal(t, []string{"of é 1"}, acquire(1, time.Hour, "of é 1"))
	granted, counted, err := s.AcquireTasks(t.Context(), id(2), []string{"a", "of é 2", "ofe"}, "of é ", time.Hour)
	require.NoError(t, err)
	require.Equal(t, []string{"of é 2", "ofe"}, granted)
	require.Equal(t, 2, counted)
	require.Empty(t, acquire(1, 0, "a"))
	require.Equal(t, []string{"a"}, acquire(2, time.Nanosecond, "a"))
	require.Eventually(t, func() bool { return len(acquire(1, time.Hour, "a")) == 1 }, time.Minute, time.Millisecond, "expired")

	var many []string
	for n := range 10_001 {
		many = append(many, fmt.Sprint("many", n))
	}
	_, _, err = s.AcquireTasks(t.Context(), id(3), many, "", time.Hour)
	require.ErrorIs(t, err, agent.ErrTooMany)
	require.Equal(t, []string{"many0"}, acquire(3, time.Hour, "many0"), "none of them is granted")
}
