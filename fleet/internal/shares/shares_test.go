package shares

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// labels are those of the nth workspace.
func labels(n int) (username, workspace string) {
	return fmt.Sprintf("user%d", n/4), fmt.Sprintf("workspace%d", n%4)
}

// replicas returns n ids, which random processes would have.
func replicas(n int) []agent.ID {
	random := rand.NewChaCha8([32]byte{1})
	ids := make([]agent.ID, n)
	for i := range ids {
		ids[i] = uuid.Must(uuid.NewRandomFromReader(random))
	}
	return ids
}

// Replicas of other versions and on other machines must agree: these owners never change.
func TestOwnerIsStable(t *testing.T) {
	ids := make([]agent.ID, 5)
	for i := range ids {
		ids[i] = agent.ID{15: byte(i)}
	}
	s := New(ids[0], ids)
	var owners []byte
	for n := range 16 {
		owner, ok := s.Owner(labels(n))
		require.True(t, ok)
		owners = append(owners, owner[15])
	}
	require.Equal(t, []byte{3, 2, 0, 2, 2, 4, 4, 4, 3, 3, 2, 1, 2, 2, 0, 3}, owners)
}

func TestFewReplicas(t *testing.T) {
	self, other := agent.ID{1}, agent.ID{2}
	_, ok := New(self, nil).Owner("u", "w")
	require.False(t, ok)
	require.False(t, New(agent.ID{}, nil).Has("u", "w"))
	require.True(t, New(self, []agent.ID{self}).Has("u", "w"))
	require.False(t, New(self, []agent.ID{other}).Has("u", "w"))
	require.True(t, New(self, []agent.ID{other}).Of([]agent.ID{other}))
	require.False(t, New(self, []agent.ID{other}).Of([]agent.ID{self}))
}

// Each workspace has one owner, whatever the order in which replicas are known; shares are
// even; where a replica comes or goes only its share moves.
func TestRendezvous(t *testing.T) {
	const workspaces = 40000
	for _, n := range []int{2, 3, 5, 16} {
		all := replicas(n)
		gone := all[n/2]
		left := slices.DeleteFunc(slices.Clone(all), func(id agent.ID) bool { return id == gone })
		reversed := slices.Clone(all)
		slices.Reverse(reversed)
		var seen []*Shares
		for _, self := range all {
			seen = append(seen, New(self, reversed))
		}
		before, after := New(all[0], all), New(all[0], left)
		counts := make(map[agent.ID]int)
		taken := make(map[agent.ID]int)
		for i := range workspaces {
			username, workspace := labels(i)
			owner, _ := before.Owner(username, workspace)
			counts[owner]++
			owners := 0
			for _, s := range seen {
				if s.Has(username, workspace) {
					owners++
				}
			}
			next, _ := after.Owner(username, workspace)
			if owner == gone {
				taken[next]++
			} else if owner != next || owners != 1 {
				require.Equal(t, owner, next, "only the share of who is gone moves")
				require.Equal(t, 1, owners)
			}
		}
		for _, id := range all {
			require.InEpsilon(t, workspaces/n, counts[id], 0.1, "share of one of %d", n)
		}
		for _, id := range left {
			require.InEpsilon(t, counts[gone]/(n-1), taken[id], 0.3, "what one of %d takes over", n-1)
		}
	}
}

// The two labels are not confused with each other.
func TestLabelsAreApart(t *testing.T) {
	s := New(agent.ID{}, replicas(16))
	differ := 0
	for n := range 100 {
		a, _ := s.Owner(fmt.Sprint("a", n), "b")
		b, _ := s.Owner("a", fmt.Sprint(n, "b"))
		c, _ := s.Owner("b", fmt.Sprint("a", n))
		if a != b && a != c {
			differ++
		}
	}
	require.Greater(t, differ, 70)
}

func TestHasAllocatesNothing(t *testing.T) {
	all := replicas(3)
	s := New(all[0], all)
	require.Zero(t, testing.AllocsPerRun(100, func() { s.Has("username", "workspace") }))
}

func BenchmarkHas(b *testing.B) {
	for _, n := range []int{1, 3, 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all := replicas(n)
			s := New(all[0], all)
			b.ReportAllocs()
			for b.Loop() {
				s.Has("a.user.name", "the-workspace-of-it")
			}
		})
	}
}
