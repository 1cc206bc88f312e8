package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// setOf is a set of agents, each in a workspace of its own.
func setOf(numbers ...int) (s Set) {
	for _, n := range numbers {
		s.Agents = append(s.Agents, registration(n, n, 1))
	}
	return s
}

// Between the reading of a set and its sync coderd goes on: by any replica it registers
// an agent and names another one again, deregisters one, and removes a workspace. The
// sync takes nothing of that back, and removes what went before the reading.
func TestSyncOfASetThatWasReadBefore(t *testing.T) {
	for _, by := range []int{0, 1} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprintf("by replica %d, read at a time: %t", by, known), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					_, r := startReplicas(t, 2)
					lonely, gone := registration(7, 7, 1).Workspace, registration(8, 8, 1).Workspace
					all := setOf(1, 2, 3, 4, 5, 6)
					all.Workspaces = []agent.Workspace{gone}
					_, err := r[0].Register(t.Context(), all)
					require.NoError(t, err)
					awaitReplicas()
					readAt := time.Now()
					set := setOf(2, 3, 4, 6) // neither 1 nor 5
					set.Workspaces = []agent.Workspace{gone}
					if known {
						set.ReadAt = readAt
					}
					time.Sleep(time.Second)
					since := setOf(5, 9)
					since.Workspaces = []agent.Workspace{lonely}
					_, err = r[by].Register(t.Context(), since)
					require.NoError(t, err)
					_, err = r[by].Deregister(t.Context(), ids(3), []agent.ID{gone.ID, registration(4, 4, 1).Workspace.ID})
					require.NoError(t, err)
					sync, err := r[0].BeginSync()
					require.NoError(t, err)
					if by == 1 {
						awaitReplicas()
						sync, err = r[0].BeginSync()
						require.NoError(t, err)
					}
					_, err = sync.Apply(t.Context(), set, true)
					require.NoError(t, err)
					awaitReplicas()
					for _, p := range r {
						if !known {
							require.Equal(t, ids(2, 3, 4, 6), registered(p.Fleet))
							continue
						}
						require.Equal(t, ids(2, 5, 6, 9), registered(p.Fleet))
						require.NotNil(t, p.registry.workspaces.Get(lonely.ID))
						require.NotNil(t, p.registry.workspaces.Get(registration(3, 3, 1).Workspace.ID), "its agent went, it did not")
						require.Nil(t, p.registry.workspaces.Get(registration(4, 4, 1).Workspace.ID))
						require.Nil(t, p.registry.workspaces.Get(gone.ID))
					}
				})
			})
		}
	}
}

// A store that is slow does not make removals older than they are.
func TestRemovalsOfASlowStore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		_, err := r[0].Register(t.Context(), setOf(1, 2, 3))
		require.NoError(t, err)
		set := setOf(1, 2, 3)
		set.ReadAt = time.Now()
		time.Sleep(time.Second)
		_, err = r[0].Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		r[0].store.removalsDelay = 10 * time.Second
		sync, err := r[0].BeginSync()
		require.NoError(t, err)
		_, err = sync.Apply(t.Context(), set, false)
		require.NoError(t, err)
		require.Equal(t, ids(2, 3), registered(r[0].Fleet))
	})
}

// When each agent was named last is not stored: a replica that started after the reading
// removes nothing that it knew at its start.
func TestSyncOfASetThatWasReadBeforeTheStart(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, r := startReplicas(t, 1)
		readAt := time.Now()
		_, err := r[0].Register(t.Context(), setOf(1, 2))
		require.NoError(t, err)
		time.Sleep(time.Second)
		late := startReplica(t, c, r[0].store, 1, Options{})
		awaitReplicas()
		for _, at := range []time.Time{readAt, time.Now()} {
			sync, err := late.BeginSync()
			require.NoError(t, err)
			set := setOf(1)
			set.ReadAt = at
			done, err := sync.Apply(t.Context(), set, true)
			require.NoError(t, err)
			require.Equal(t, at != readAt, done.Deregistered == 1)
		}
	})
}

// A registration that was kept brings back no agent that was removed since, by whichever
// replica. One that is newer than the removal does, and so does a current one.
func TestKeptRegistration(t *testing.T) {
	for _, by := range []int{0, 1} {
		bubble.Test(t, func(t *testing.T) {
			_, r := startReplicas(t, 2)
			_, err := r[0].Register(t.Context(), setOf(1, 2, 3))
			require.NoError(t, err)
			awaitReplicas()
			before := time.Now()
			time.Sleep(time.Minute)
			_, err = r[by].Deregister(t.Context(), ids(1, 3), []agent.ID{registration(2, 2, 1).Workspace.ID})
			require.NoError(t, err)
			time.Sleep(time.Second)
			kept := setOf(1, 2, 3, 4)
			kept.GotAt = map[agent.ID]time.Time{nid(1): before, nid(2): before, nid(3): time.Now(), nid(4): before}
			done, err := r[0].Register(t.Context(), kept)
			require.NoError(t, err)
			require.ElementsMatch(t, ids(1, 2), done.Stale)
			require.Equal(t, ids(3, 4), registered(r[0].Fleet))

			_, err = r[0].Register(t.Context(), setOf(1))
			require.NoError(t, err)
			kept = setOf(1)
			kept.GotAt = map[agent.ID]time.Time{nid(1): before}
			done, err = r[0].Register(t.Context(), kept)
			require.NoError(t, err)
			require.Empty(t, done.Stale, "it is known")
		})
	}
}
